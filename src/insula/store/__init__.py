"""State on disk: names, records, locks."""
