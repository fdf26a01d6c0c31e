"""Words without input or output: specs, requests, states and units."""
