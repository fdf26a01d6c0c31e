"""What a build tells its caller while it runs, and how the caller stops it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from insula.errors import Interrupted


class Progress(msgspec.Struct, frozen=True):
    """``step`` is what is being done, ``line`` the last thing its program said, ``fraction`` how much of the whole is done."""

    step: str
    fraction: float
    line: str = ""


class Watcher(msgspec.Struct, frozen=True):
    """Both ends of a running build: where its progress goes, and whether it should give up."""

    report: Callable[[Progress], None] = lambda _: None
    cancelled: Callable[[], bool] = lambda: False

    def say(self, step: str, fraction: float, line: str = "") -> None:
        """Report, unless the caller wants to stop. Raises Interrupted."""
        self.check()
        self.report(Progress(step, fraction, line))

    def check(self) -> None:
        if self.cancelled():
            raise Interrupted("the build was stopped", hint="nothing is left of it; start it again at any time")
