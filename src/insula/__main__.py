"""``python -m insula``, and the file the launcher runs by its path (which needs no search through the packages first)."""

import os
import sys

if __name__ == "__main__":
    if not __package__:
        # Run by path in isolated mode: nothing has told Python where the package lies.
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from insula.cli.main import main

    main()
