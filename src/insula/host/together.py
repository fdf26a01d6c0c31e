"""Things done side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable


def together(*works: Callable[[], None]) -> None:
    """Side by side: each mostly waits for a program. The first error is raised when all have ended."""
    errors: list[BaseException] = []

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (raised by who waits for all)
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(work,)) for work in works[1:]]
    for thread in threads:
        thread.start()
    attempt(works[0])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
