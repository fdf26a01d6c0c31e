"""What is measured and published in SPECIFICATION.md: ratios of Insula to the same work done by hand, interleaved in one run.

python -m bench [NAME…] [--n N] [--write]
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Run from a clone, with any environment that has what Insula needs.
sys.path.insert(0, str(ROOT / "src"))
