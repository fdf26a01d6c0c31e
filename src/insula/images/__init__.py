"""Building, verifying and naming images."""
