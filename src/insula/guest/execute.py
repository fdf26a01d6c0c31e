"""Runs a program in the guest with its streams passed through, as `ssh` does."""

from __future__ import annotations

from collections.abc import Sequence

from insula.guest.link import Link
from insula.guest.relay import ReaderGone, relay
from insula.model.streams import Streams
from insula.model.text import clean

# The user's login shell, found by the guest itself: what is wanted when no command is named.
LOGIN_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l')


class ExitStatus:
    """How a program ended: with ``code``, or by ``signal`` (a name without SIG) when that is not empty."""

    __slots__ = ("code", "signal")

    def __init__(self, code: int, signal: str = "") -> None:
        self.code = code
        self.signal = signal

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExitStatus) and (self.code, self.signal) == (other.code, other.signal)

    def __hash__(self) -> int:
        return hash((self.code, self.signal))

    def __repr__(self) -> str:
        return f"ExitStatus({self.code}, {self.signal!r})"

    @property
    def shell_code(self) -> int:
        """What a shell would call it: the code, or 128 and the signal's number (128 alone when we do not know that signal)."""
        if not self.signal:
            return self.code & 0xFF
        import signal

        number = getattr(signal, f"SIG{self.signal}", 0)
        return 128 + (number if isinstance(number, int) else 0)


def execute(
    link: Link,
    argv: Sequence[str | bytes],
    streams: Streams,
    *,
    env: Sequence[str | bytes] = (),
    cwd: str | bytes = "",
    user: str = "",
    tty: bool = False,
    rows: int = 24,
    cols: int = 80,
    wait: float = 0.0,
) -> ExitStatus:
    """Run ``argv`` in the guest until it ends, passing ``streams`` through; the caller closes them.

    ``env`` are words ``NAME=value`` on top of the guest's usual environment; an empty ``cwd`` is the user's home, an empty
    ``user`` is root. With ``tty`` the program gets a terminal of that many ``rows`` and ``cols``. ``wait`` seconds are granted
    to an agent that does not answer yet. When nobody reads our output any more, the program is hung up and counts as ended
    by PIPE.

    Raises GuestError (``command_not_found``, ``command_not_executable``, ``no_such_folder``, ``no_such_user``), AgentAbsent,
    MachineEnded, and whatever the streams raise (the program is hung up then).
    """
    channel = link.open(
        "exec",
        argv=tuple(argv),
        env=tuple(env),
        cwd=cwd or None,
        user=user or None,
        tty=1 if tty else None,
        rows=rows if tty else None,
        cols=cols if tty else None,
        wait_ms=round(wait * 1000) if wait else None,
    )
    try:
        result = relay(channel, streams)
    except ReaderGone:
        return ExitStatus(0, "PIPE")
    if "error" in result:
        raise channel.failure(_subject(argv, cwd, user, result.text("error")))
    if "signal" in result:
        return ExitStatus(0, clean(result.text("signal"), longest=20))
    return ExitStatus(result.number("code"))


def _subject(argv: Sequence[str | bytes], cwd: str | bytes, user: str, untrusted_error: str) -> str:
    """What a failure is about."""
    about = {"ECHDIR": cwd, "EUSER": user}.get(untrusted_error) or argv[0]
    return clean(about)
