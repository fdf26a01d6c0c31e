"""Things done side by side."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final


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


_LONGEST_TURN: Final = 0.0002  # seconds
_turns = threading.Lock()
_wishes: list[float] = []  # how long turns were, for each who wished for short ones


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Within, a thread that computes in Python gives way at once to one that has waited for something: by itself it computes
    on for five milliseconds each time, which a guest that stands would stand longer."""
    with _turns:
        _wishes.append(sys.getswitchinterval())
        sys.setswitchinterval(_LONGEST_TURN)
    try:
        yield
    finally:
        with _turns:
            former = _wishes[0]
            _wishes.pop()
            if not _wishes:
                sys.setswitchinterval(former)


class Beside:
    """Work that is done beside what follows, from `begin` on. To be joined, whatever happens; not begun, there is nothing to wait
    for."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=self._attempt)
        self._thread.start()

    def _attempt(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 (raised by who waits)
            self._error = error

    def join(self) -> None:
        """Return when it is over, however it went."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Return when it is done. Raises what it raised."""
        self.join()
        if self._error is not None:
            raise self._error
