"""Which layers of its jail hold for a running machine: looked at from outside, in the kernel's own words."""

from __future__ import annotations

from typing import Final

from insula.errors import MachineEnded
from insula.isolation.inhabitants import inhabitants
from insula.isolation.layers import layers_of
from insula.model.lifecycle import check_transition
from insula.model.requests import ShowSecurity
from insula.model.security import Security
from insula.operations.context import Context
from insula.operations.look import record_of
from insula.operations.observe import observe
from insula.operations.operation import Operation

# QEMU's documentation, "Security": the virtualization use case is KVM (or another hypervisor) with a board made for it.
_PROMISES: Final = {
    "kvm": "QEMU means to contain its guest; the jail is the second wall",
    "hvf": "QEMU means to contain its guest; the jail is the second wall",
}
_NO_PROMISE: Final = "emulated: QEMU promises no isolation, the jail is the wall"


def show_security(context: Context, request: ShowSecurity, operation: Operation) -> Security:
    """The layers around the machine's QEMU.

    Raises NotFound, DamagedRecord, WrongState, MachineEnded, HostLacks (``unseen``).
    """
    del operation
    folder, record = record_of(context, request.name)
    check_transition(request.name, "show security", observe(folder)[0].state)
    found = inhabitants(folder, record.id)
    if not found:
        raise MachineEnded(f"{request.name} ended while it was looked at", code="not_running", hint="see why: insula list")
    accelerator = record.board.accelerator if record.board else ""
    # By its name, which it may have changed; pids alone may have begun anew between the keeper's and its child's.
    qemu = next((pid for pid, untrusted_name in found.items() if untrusted_name.startswith("qemu")), max(found))
    return Security(request.name, accelerator, _PROMISES.get(accelerator, _NO_PROMISE), layers_of(qemu))
