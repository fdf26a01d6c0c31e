"""How machines run: the Engine protocol (base.py) and its implementations."""
