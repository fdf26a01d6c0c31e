"""Every error a user may meet.

    InsulaError                 anything that went wrong and is not a bug
    ├── UsageError              the request itself is wrong; nothing was tried
    ├── NotFound                the thing named does not exist
    ├── AlreadyExists           the name is taken
    ├── WrongState              the thing exists, and its state forbids the verb
    ├── Busy                    another verb holds the lock
    ├── DamagedRecord           a file of ours is not what was written
    ├── HostLacks               this host cannot do it (package, permission, space, memory)
    ├── ChildFailed             a program we started failed
    ├── GuestError              the guest (or its agent) did not do what was asked
    │   └── AgentAbsent         nobody answers inside the guest
    ├── MachineEnded            the machine ended while it was needed
    └── Interrupted             the caller asked to stop

A class says what a program would do about it; ``code`` says exactly which error it is and never changes once released.
``message`` states the fact, ``hint`` the next step. Messages never repeat their cause: the chain is printed.
"""

from __future__ import annotations

# Loading `typing` takes a quick `insula exec` a fifth of its time; type checkers take this constant to be true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class InsulaError(Exception):
    """An expected failure: shown as a message and a hint, never as a traceback."""

    default_code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(InsulaError):
    """The request is malformed: an impossible size, a hostile name, a broken recipe."""

    default_code = "usage"
    exit_code = 2


class NotFound(InsulaError):
    default_code = "not_found"


class AlreadyExists(InsulaError):
    default_code = "already_exists"


class WrongState(InsulaError):
    default_code = "wrong_state"


class Busy(InsulaError):
    default_code = "busy"


class DamagedRecord(InsulaError):
    default_code = "damaged_record"


class HostLacks(InsulaError):
    default_code = "host_lacks"


class ChildFailed(InsulaError):
    """A program we started ended badly. ``command`` can be pasted into a shell; ``output`` is its last words."""

    default_code = "child_failed"

    def __init__(
        self, message: str, *, command: str, status: int, output: str = "", code: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.command = command
        self.status = status
        self.output = output


class GuestError(InsulaError):
    default_code = "guest_error"


class AgentAbsent(GuestError):
    default_code = "agent_absent"


class MachineEnded(InsulaError):
    default_code = "machine_ended"


class Interrupted(InsulaError):
    default_code = "interrupted"
    exit_code = 130
