"""The verbs: each reads as the steps of its story, each step followed by its undo."""
