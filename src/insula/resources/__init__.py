"""What this host has to give, and to whom."""
