"""``python -m insula``, and the file the launcher runs by its path (which needs no search through the packages first)."""

import gc
import os
import sys

if __name__ == "__main__":
    # Loading modules makes objects that stay: to look for garbage among them takes a tenth of a quick command.
    gc.set_threshold(50_000, 20, 20)
    if not __package__:
        # Run by path in isolated mode: nothing has told Python where the package lies.
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from insula.cli.main import main

    main()
