"""What is measured and published in SPECIFICATION.md: ratios of Insula to the same work done by hand, interleaved in one run."""
