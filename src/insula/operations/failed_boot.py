"""Why a guest did not come up, in words: its end or its resets, and what it printed on its console."""

from __future__ import annotations

import contextlib
from pathlib import Path

from insula.errors import AgentAbsent, GuestError, InsulaError, MachineEnded
from insula.model.text import clean
from insula.operations.observe import end_of
from insula.store import names

_MOST = 65536  # bytes looked at
_LONGEST = 200  # characters of a line
# Lines that explain more than those after them: the kernel's reason to panic, and our agent's to give up.
_TELLING = ("Kernel panic - not syncing:", "insula-agent: ")
_GUESTS_DOING = {
    "guest-panic": "its kernel panicked",
    "guest-shutdown": "the guest shut itself down before it answered",
    "guest-reset": "the guest reset itself",
}


class Printed:
    """Made before the guest starts: what the console's log holds by then is of a former life."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / names.CONSOLE
        self._begin = self._size()

    def last_lines(self, most: int = 3) -> str:
        """The last lines of this life, the most telling ones if there are such; cleaned, on one line. Perhaps empty."""
        lines = [line for raw in self._read().splitlines() if (line := clean(raw.strip(), longest=_LONGEST))]
        telling = [line for line in lines if any(word in line for word in _TELLING) and "end Kernel panic" not in line]
        return "; ".join((telling or lines)[-most:])

    def _size(self) -> int:
        with contextlib.suppress(OSError):
            return self._path.stat().st_size
        return 0

    def _read(self) -> bytes:
        begin = self._begin if self._begin <= self._size() else 0  # it began anew when it was full
        with contextlib.suppress(OSError), open(self._path, "rb") as stream:
            stream.seek(max(begin, self._size() - _MOST))
            return stream.read(_MOST)
        return b""


def explain(folder: Path, printed: Printed, cause: InsulaError, timeout: float) -> InsulaError:
    """The error for a start whose wait for the guest ended by ``cause``."""
    name, look = folder.name, f"see what the guest printed: insula logs {folder.name}"
    if isinstance(cause, MachineEnded):
        return _ended(folder, printed, look)
    if not isinstance(cause, GuestError):
        return cause
    if cause.code == "guest_resets":
        said = printed.last_lines()
        return GuestError(
            f"{name} was reset 3 times while booting" + (f": {said}" if said else ", and printed nothing"),
            code="guest_resets",
            hint=f"{look}; to watch it: insula start --timeout 0 {name}, then insula console {name}",
        )
    if cause.code == "timeout":
        return AgentAbsent(
            f"{name} did not answer within {timeout:g} s",
            code="agent_timeout",
            hint=f"see what it prints: insula logs {name}; give it more time with --timeout",
        )
    return cause


def _ended(folder: Path, printed: Printed, hint: str) -> MachineEnded:
    end = end_of(folder)
    words = end.last_words.strip().splitlines()[-1:]
    if end.reason in _GUESTS_DOING:
        why, words = _GUESTS_DOING[end.reason], [printed.last_lines()]
    else:
        why = f"{end.reason}: {end.detail}" if end.detail else end.reason
    message = f"{folder.name} ended while starting ({why})" + "".join(f": {line}" for line in words if line)
    return MachineEnded(message, code=end.reason.replace("-", "_"), hint=hint)
