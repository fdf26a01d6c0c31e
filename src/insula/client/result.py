"""What the SDK tells of a command that ended in a guest."""

from __future__ import annotations

from insula.errors import GuestError


class ExecResult:
    """How a command in a guest ended. ``code`` is as a shell tells it: 128 + n for a signal. ``why``: a sentence about that,
    where more is known, such as that the guest has run out of memory."""

    __slots__ = ("argv", "code", "stderr_bytes", "stdout_bytes", "why")

    def __init__(self, argv: tuple[str, ...], code: int, stdout: bytes, stderr: bytes, why: str = "") -> None:
        self.why = why
        self.argv = argv
        self.code = code
        self.stdout_bytes = stdout
        self.stderr_bytes = stderr

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are no UTF-8 become U+FFFD (``stdout_bytes`` has them as they were)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    def check(self) -> ExecResult:
        """Itself. Raises GuestError (``command_failed``) when the code is not 0."""
        if self.code != 0:
            last = [self.why] if self.why else self.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise GuestError(f"'{self.argv[0]}' failed in the guest with code {self.code}: {last[0]}", code="command_failed")
        return self

    def __repr__(self) -> str:
        return f"ExecResult({self.argv!r}, code={self.code})"
