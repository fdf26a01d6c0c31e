"""``python -m insula``, and the file the launcher runs by its path (which needs no search through the packages first)."""

import gc
import os
import sys
import time


def _mark_environment() -> None:
    """Note in the time of the launcher's environment that it is used (to the day), so that it is not taken for an old one.

    As ``host.cache.mark_used`` does, without what that imports: every command comes by here.
    """
    try:
        if os.path.basename(sys.prefix).startswith("env-") and time.time() - os.stat(sys.prefix).st_mtime > 86400:
            os.utime(sys.prefix)
    except OSError:
        pass  # another user's environment: whoever owns it keeps it


if __name__ == "__main__":
    # Loading modules makes objects that stay: to look for garbage among them takes a tenth of a quick command.
    gc.set_threshold(50_000, 20, 20)
    if not __package__:
        # Run by path in isolated mode: nothing has told Python where the package lies.
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    _mark_environment()
    from insula.cli.main import main

    main()
