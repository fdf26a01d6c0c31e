"""Run: make a machine, start it, and do one thing in it; the main story of Insula."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from insula.errors import DamagedRecord, InsulaError, MachineEnded, UsageError
from insula.model.requests import CreateMachine, DeleteMachine, ExecMachine, Execution, RunMachine
from insula.model.spec import check_spec
from insula.model.status import MachineStatus
from insula.model.streams import Streams
from insula.operations.admit import admit, board_of
from insula.operations.context import Context
from insula.operations.create import created, prepare
from insula.operations.delete import delete
from insula.operations.hold import status_of
from insula.operations.lease import Lease, take_lease
from insula.operations.operation import Operation
from insula.operations.start import boot, check_memory
from insula.store.machines import ImageUse, read_machine

if TYPE_CHECKING:
    from insula.guest.execute import ExitStatus
    from insula.images.record import Image
    from insula.operations.fork import Newborn
    from insula.operations.origin import Origin

_TRIES: Final = 2


class RunResult(msgspec.Struct):
    """What became of it: the machine, how the command ended (None: there was none), and the lease that an attached
    machine lives by: closing it ends the machine."""

    machine: MachineStatus
    exit: ExitStatus | None = None
    lease: Lease | None = None


def run(
    context: Context, request: RunMachine, operation: Operation, open_streams: Callable[[], Streams] | None = None
) -> RunResult:
    """Create and start a machine; with a command (or ``shell``) run that, and delete the machine if it is ephemeral.

    ``open_streams`` is called when the guest is ready for the command: until then the terminal and its Ctrl-C are the user's.

    When it fails before the command ran, an ephemeral machine is gone again; a named one that was booted stays, stopped or
    running, for its owner to look at.
    """
    if open_streams is None and (request.argv or request.shell):
        raise UsageError("a command needs streams beside its request", code="no_streams")
    check_spec(request.spec)
    check_memory(request.spec)  # before an image is built and a disk made for a machine that could not be started
    lease: Lease | None = None
    made: MachineStatus | None = None
    try:
        with _born(context, request, operation) as (folder, starting):
            made = status_of(folder)
            lease = starting()
        if open_streams is None:
            return RunResult(status_of(folder), lease=lease)
        status = _execute(context, request, made.name, operation, open_streams)
    except BaseException:
        if made is not None:
            _drop(context, request, made.name, lease)
        raise
    _drop(context, request, made.name, lease)
    return RunResult(made, status)


@contextlib.contextmanager
def _born(context: Context, request: RunMachine, operation: Operation) -> Iterator[tuple[Path, Callable[[], Lease | None]]]:
    """A new machine whose lock is ours, and what starts it: a fork of its image's warm state runs already."""
    creation = CreateMachine(
        image=request.image, name=request.name, spec=request.spec, addresses=request.addresses, published=request.published,
        firewall=request.firewall, limits=request.limits, ephemeral=request.ephemeral, insecure=request.insecure,
    )  # fmt: skip
    name, image = prepare(context, creation, operation)
    with contextlib.ExitStack() as stack:
        warm = _fork(context, request, name, image, operation, stack)
        if warm is None:
            folder = stack.enter_context(created(context, creation, name, image, operation))
            yield folder, lambda: _boot(context, request, folder, operation)
        else:
            yield warm.folder, lambda: _keep(request, warm.lease)


def _fork(
    context: Context, request: RunMachine, name: str, image: Image, operation: Operation, stack: contextlib.ExitStack
) -> Newborn | None:
    """A fork of the image's warm state, on ``stack``; None when it is to boot."""
    # A TPM is an identity: each machine gets one that no other ever had.
    if request.cold or context.cold or request.spec.tpm or not image.record.recipe.warm or not context.engine.features.save:
        return None
    from insula.operations.fork import brought_up  # none of it is for a machine that boots
    from insula.operations.origin import Wishes
    from insula.operations.spare import refill_behind
    from insula.store.spares import spare_folders

    use = ImageUse(name=request.image, digest=image.digest)
    for _ in range(_TRIES):
        origin = _warm(context, request, image, operation)
        if origin is None:
            return None
        stack.callback(refill_behind, context, origin.record.id)
        if not spare_folders(context.home, origin.record.id):
            shape = origin.record.hardware
            board, cpus = board_of(context, origin.record), shape.used_cpus
            admit(context, operation, shape.total, board, cpus=cpus, needs=origin.machine)
        with contextlib.suppress(DamagedRecord):  # it was replaced by a younger one while we linked its files
            wishes = Wishes(
                use, request.spec.networks, request.addresses, request.published, request.firewall, request.limits,
                request.insecure,
            )  # fmt: skip
            how = brought_up(context, origin, name, operation, request.timeout, ephemeral=request.ephemeral, wishes=wishes)
            return stack.enter_context(how)
    return None


def _keep(request: RunMachine, lease: Lease) -> Lease | None:
    """An attached machine goes on hanging on the lease."""
    if request.attached:
        return lease
    lease.release()
    return None


def _warm(context: Context, request: RunMachine, image: Image, operation: Operation) -> Origin | None:
    """The state to fork. Without one the machine boots: nobody is to be kept from it because a state could not be kept."""
    from insula.operations.warm import warm_origin

    try:
        return warm_origin(context, request.image, image, request.spec, operation)
    except InsulaError as cause:
        operation.tell(f"boot, because no state of {request.image} could be kept: {cause.message}")
        return None


def _boot(context: Context, request: RunMachine, folder: Path, operation: Operation) -> Lease | None:
    """Boot it; from the moment its keeper lives an attached machine hangs on the lease."""
    lease: list[Lease] = []

    def attach() -> None:
        if request.attached:
            lease.append(take_lease(folder))
        if request.argv or request.shell:
            import insula.operations.execute  # noqa: F401 - what will be needed then is loaded while the guest boots

    try:
        boot(context, folder, read_machine(folder), operation, request.timeout, launched=attach)
    except BaseException:
        for one in lease:
            one.close()
        raise
    return lease[0] if lease else None


def _execute(
    context: Context, request: RunMachine, name: str, operation: Operation, open_streams: Callable[[], Streams]
) -> ExitStatus:
    from insula.guest.execute import LOGIN_SHELL
    from insula.operations.execute import execute

    what = {field: getattr(request, field) for field in Execution.__struct_fields__}
    inner = ExecMachine(name=name, **what | {"argv": request.argv or LOGIN_SHELL})
    operation.tell("run the command")
    streams = open_streams()
    try:
        return execute(context, inner, operation, streams)
    except MachineEnded as ended:
        # `run tiny -- poweroff`: the machine going down under its own command is an end like any other.
        ended.message = f"{name} ended before the command did" + (f": {ended.message}" if ended.message else "")
        raise
    finally:
        streams.close()


def _drop(context: Context, request: RunMachine, name: str, lease: Lease | None) -> None:
    """The end of an ephemeral machine that was only made for this command."""
    if lease is not None:
        lease.close()
    if request.ephemeral:
        # What others may ask for at once must be free when we return; what nobody can know of need not.
        behind = not request.published and not any(request.addresses)
        with contextlib.suppress(InsulaError):
            delete(context, DeleteMachine(name=name, force=True), Operation("delete", name), cards_behind=behind)
