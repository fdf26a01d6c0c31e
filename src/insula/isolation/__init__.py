"""The jail around every process that touches what a guest wrote."""
