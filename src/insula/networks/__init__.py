"""How machines reach the world."""
