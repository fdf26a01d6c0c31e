"""Whether a guest has run out of memory: its kernel counts the programs that it ended for that."""

from __future__ import annotations

from insula.errors import InsulaError

TYPE_CHECKING = False  # as in typing, which takes long to load
if TYPE_CHECKING:
    from insula.guest.link import Link

_PATIENCE = 5.0  # seconds for a program that takes milliseconds; a guest without memory may take all of them
_LONGEST = 256


def programs_ended(link: Link) -> int:
    """How many programs the guest's kernel has ended for want of memory since it booted (``oom_kill`` in /proc/vmstat, proc(5));
    0 when it does not tell."""
    untrusted = b""
    try:
        channel = link.open("exec", argv=("grep", "^oom_kill ", "/proc/vmstat"))
        while (came := channel.next(_PATIENCE)) is not None and len(untrusted) < _LONGEST:
            untrusted += came[1]
        words = untrusted.decode("ascii", "replace").split()
        return int(words[1]) if len(words) == 2 and len(words[1]) < 10 else 0
    except (InsulaError, ValueError):
        return 0


def why_killed(link: Link) -> str:
    """A sentence for somebody whose program was ended by a signal that nobody can refuse; empty when memory was no reason."""
    count = programs_ended(link)
    if not count:
        return ""
    programs = "a program" if count == 1 else f"{count} programs"
    return f"the guest has run out of memory: its kernel has ended {programs} for that since it booted"
