"""Runs a program in the guest with its streams passed through, as `ssh` does."""

from __future__ import annotations

from insula.guest.link import Link
from insula.guest.relay import ReaderGone, relay
from insula.model.command import Runnable
from insula.model.streams import Streams
from insula.model.text import clean

# The user's login shell, found by the guest itself: what is wanted when no command is named.
LOGIN_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l')


class ExitStatus:
    """How a program ended: with ``code``, or by ``signal`` (a name without SIG) when that is not empty. ``why``: a sentence about
    that, where more is known."""

    __slots__ = ("code", "signal", "why")

    def __init__(self, code: int, signal: str = "", why: str = "") -> None:
        self.code = code
        self.signal = signal
        self.why = why

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


def execute(link: Link, command: Runnable, streams: Streams) -> ExitStatus:
    """Run ``command`` in the guest until it ends, passing ``streams`` through; the caller closes them.

    When nobody reads our output any more, the program is hung up and counts as ended by PIPE.

    Raises GuestError (``command_not_found``, ``command_not_executable``, ``no_such_folder``, ``no_such_user``), AgentAbsent,
    MachineEnded, and whatever the streams raise (the program is hung up then).
    """
    channel = link.open(
        "exec",
        argv=tuple(command.argv),
        env=tuple(command.env),
        cwd=command.cwd or None,
        user=command.user or None,
        tty=1 if command.tty else None,
        rows=command.rows if command.tty else None,
        cols=command.cols if command.tty else None,
        wait_ms=round(command.wait * 1000) if command.wait else None,
    )
    try:
        result = relay(channel, streams)
    except ReaderGone:
        return ExitStatus(0, "PIPE")
    if "error" in result:
        raise channel.failure(_subject(command, result.text("error")))
    if "signal" in result:
        signal = clean(result.text("signal"), longest=20)
        return ExitStatus(0, signal, _why_killed(link) if signal == "KILL" else "")
    return ExitStatus(result.number("code"))


def _why_killed(link: Link) -> str:
    from insula.guest.memory import why_killed

    return why_killed(link)


def _subject(command: Runnable, untrusted_error: str) -> str:
    """What a failure is about."""
    about = {"ECHDIR": command.cwd, "EUSER": command.user}.get(untrusted_error) or command.argv[0]
    return clean(about)
