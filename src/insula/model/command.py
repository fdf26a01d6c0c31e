"""What is to be run in a guest: one value, from whoever asks to the wire."""

from __future__ import annotations

from collections.abc import Sequence

# Loading `typing` takes as long as asking a guest for its answer; type checkers take this constant to be true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Runnable(Protocol):
    """What a guest is told. `Command` is one, and so is the request ExecMachine.

    ``env`` are words ``NAME=value`` on top of the guest's usual environment; an empty ``cwd`` is the user's home, an empty
    ``user`` is root. With ``tty`` the program gets a terminal of that many ``rows`` and ``cols``. ``wait`` seconds are granted
    to an agent that does not answer yet.
    """

    @property
    def argv(self) -> Sequence[str | bytes]: ...
    @property
    def env(self) -> Sequence[str | bytes]: ...
    @property
    def user(self) -> str: ...
    @property
    def cwd(self) -> str | bytes: ...
    @property
    def tty(self) -> bool: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def wait(self) -> float: ...


class Command:
    """A Runnable for whoever cannot spare the time to load what requests are made with."""

    __slots__ = ("argv", "cols", "cwd", "env", "rows", "tty", "user", "wait")

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Sequence[str] = (),
        user: str = "",
        cwd: str = "",
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        wait: float = 0.0,
    ) -> None:
        self.argv = tuple(argv)
        self.env = tuple(env)
        self.user = user
        self.cwd = cwd
        self.tty = tty
        self.rows = rows
        self.cols = cols
        self.wait = wait

    def fields(self) -> dict[str, object]:
        """All of it by name, as ExecMachine takes it."""
        return {name: getattr(self, name) for name in self.__slots__}
