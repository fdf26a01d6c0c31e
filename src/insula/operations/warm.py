"""Warm states: an image is booted once, and its state just after boot is kept; `run` forks that.

    make a machine nobody sees → boot it without telling it who it is → wait until it is idle → take its state → keep it

The key of a state is a digest of all it depends on, so a state that does not fit is not found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from insula.disks.verify import ensure_sums
from insula.errors import InsulaError, UsageError
from insula.host.files import own_usage
from insula.host.process import leave
from insula.host.program import own_command
from insula.model.identity import new_identity
from insula.model.requests import CreateMachine, DeleteWarmStates, ListWarmStates, RefreshWarmState, WarmImage
from insula.model.spec import DEFAULT_NETWORK, MachineSpec, check_spec
from insula.model.status import WarmStatus
from insula.operations import journal
from insula.operations.capture import captured
from insula.operations.cards import choose_board
from insula.operations.context import Context
from insula.operations.create import fill
from insula.operations.hold import Held
from insula.operations.idle import wait_idle
from insula.operations.image import find_or_build
from insula.operations.observe import observe
from insula.operations.operation import Operation
from insula.operations.origin import Origin
from insula.operations.promises import check_disk
from insula.operations.settle import settle_locked
from insula.operations.start import boot
from insula.operations.stop import pull_plug
from insula.operations.suspend import end_quietly
from insula.store import names
from insula.store.locks import only_one
from insula.store.machines import new_machine_folder, read_machine, write_machine
from insula.store.snapshots import SnapshotRecord, complete_snapshot, publish_snapshot, read_snapshot
from insula.store.warm import BOOTED, publish_warm, read_warm, remove_warm, warm_snapshot, warm_states

if TYPE_CHECKING:
    from insula.images.record import Image

_VERSION: Final = 2
DAY: Final = 86400.0
# A state's programs were started that long ago: what they read then (certificates, leases, time zones) grows old with them.
MAX_AGE: Final = 30 * DAY
REFRESH_AGE: Final = 7 * DAY  # it is made anew behind a command that used it
_BOOT: Final = 300.0
_IDLE_WITHIN: Final = 60.0  # seconds; a guest that never is, is taken as it is then


def make(context: Context, request: WarmImage, operation: Operation) -> WarmStatus:
    """Make the warm state of an image in this shape, if there is none or with ``refresh``.

    Raises what building the image and booting it raise.
    """
    _check_shape(request.spec)
    image = find_or_build(context, request.image, operation)
    key = key_of(context, image, request.spec)
    if request.refresh or _usable(context, key) is None:
        _boot_and_keep(context, request.image, image, request.spec, key, operation, refresh=request.refresh)
    record = read_snapshot(warm_snapshot(context.home.warm / key))
    return _status(context, key, record)


def warm_origin(context: Context, name: str, image: Image, spec: MachineSpec, operation: Operation) -> Origin:
    """The state to fork for a machine of this image and shape; made now when there is none that can be used.

    Raises what a boot raises.
    """
    _check_shape(spec)
    key = key_of(context, image, spec)
    record = _usable(context, key)
    if record is None:
        operation.tell("boot once, to keep the state: later machines of this image and shape fork it")
        record = _boot_and_keep(context, name, image, spec, key, operation, refresh=False)
    elif time.time() - record.created > REFRESH_AGE:
        leave(own_command("_warm", str(context.home.root), key))
    return Origin(context.home.warm / key, warm_snapshot(context.home.warm / key), record)


def _check_shape(spec: MachineSpec) -> None:
    """Raises UsageError (also ``tpm_not_shared``: machines that go on from one state would all have the same keys)."""
    check_spec(spec)
    if spec.tpm:
        raise UsageError("a machine with a TPM of its own goes on from no state that others have", code="tpm_not_shared")


def refresh(context: Context, request: RefreshWarmState, operation: Operation) -> None:
    """Make a state anew, unless somebody just did; until then the old one is used."""
    from insula.images.catalogue import find

    record = _usable(context, request.key)
    image = find(context.home, record.image.digest) if record is not None else None
    if record is not None and image is not None and time.time() - record.created > REFRESH_AGE:
        _boot_and_keep(context, record.image.name, image, record.spec, request.key, operation, refresh=True)


def key_of(context: Context, image: Image, spec: MachineSpec) -> str:
    """A digest of all that a state of ``image`` in this shape depends on."""
    board = choose_board(context, image.record.arch)
    words = [_VERSION, image.digest, msgspec.to_builtins(canonical(spec)), context.engine.fingerprint(board)]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:32]


def canonical(spec: MachineSpec) -> MachineSpec:
    """The shape whose state serves machines of the shape ``spec``: they hear which networks they are on when they are forked."""
    return msgspec.structs.replace(spec, networks=(DEFAULT_NETWORK,) * len(spec.networks))


def _usable(context: Context, key: str) -> SnapshotRecord | None:
    """The state with this key, if it is whole, unchanged and not too old; one that is not goes."""
    folder = context.home.warm / key
    try:
        record = read_warm(context.home, key)
        if record is None:
            return None
        ensure_sums(folder, warm_snapshot(folder), record.sums)
        if 0 <= time.time() - record.created < MAX_AGE:
            return record
    except (InsulaError, OSError):
        pass
    remove_warm(context.home, key)
    return None


def _boot_and_keep(
    context: Context, name: str, image: Image, spec: MachineSpec, key: str, operation: Operation, *, refresh: bool
) -> SnapshotRecord:
    """Of two commands that need the same state the second waits for the first."""
    with only_one(context.home.host / f"warm-{key}.lock"):
        if not refresh and (record := _usable(context, key)) is not None:
            return record
        check_disk(context, operation, spec.disk + spec.memory, whose="the state of the image just after boot")
        with new_machine_folder(context.home, "image warm") as staged:
            (staged / names.WARMING).touch()
            machine, identity = fill(staged, CreateMachine(image=name, spec=canonical(spec)), image), new_identity()
            write_machine(staged, msgspec.structs.replace(machine, id=identity.uuid, identity=identity))
            _keep(context, staged, operation)
            (staged / names.WARMING).unlink()
            publish_warm(context.home, staged, key)
    return read_snapshot(warm_snapshot(context.home.warm / key))


def _keep(context: Context, staged: Path, operation: Operation) -> None:
    """Boot the machine in ``staged`` and leave it ended, with its state as the snapshot `booted`."""
    leases = []

    def attach() -> None:
        from insula.operations.lease import take_lease

        leases.append(take_lease(staged))

    try:
        boot(context, staged, read_machine(staged), operation, _BOOT, launched=attach, introduce=False)
        operation.tell("wait until it is idle")
        # Those who fork it begin with their cables out: what a guest does about that, it has done then.
        context.engine.set_links(staged / names.RUN, False)
        prepare_guest(staged)
        wait_idle(staged, read_machine(staged).id, _IDLE_WITHIN)
        status, record = observe(staged)
        assert record is not None
        with captured(context, Held(staged, record, status), operation, go_on=False) as state:
            complete_snapshot(state.folder, state.record)
            end_quietly(staged)
            publish_snapshot(state.folder, staged / names.SNAPSHOTS / BOOTED)
    finally:
        with contextlib.suppress(InsulaError):
            pull_plug(staged)
        for lease in leases:
            lease.close()
        from insula.operations.cabling import uncable
        from insula.store.networks import release_claims

        uncable(context.home, read_machine(staged))
        release_claims(context.home, read_machine(staged).id)
    settle_locked(context.home, staged)
    journal.clear(staged)


def prepare_guest(folder: Path) -> None:
    """Let the guest do now what each fork of it would have to do first."""
    from insula.guest.agent import prepare, sync
    from insula.guest.link import open_link

    with contextlib.suppress(InsulaError), open_link(folder / names.RUN) as link:
        sync(link)
        prepare(link)


def list_states(context: Context, request: ListWarmStates, operation: Operation) -> list[WarmStatus]:
    """All warm states, the newest first."""
    del request, operation
    found = [_status(context, key, record) for key, record in warm_states(context.home)]
    return sorted(found, key=lambda status: -status.created)


def delete(context: Context, request: DeleteWarmStates, operation: Operation) -> list[WarmStatus]:
    """Delete the states of an image, or all; returns what they were. Machines forked from them are not concerned."""
    from insula.images.catalogue import get

    wanted = get(context.home, request.image).digest if request.image else None
    deleted = []
    for status in list_states(context, ListWarmStates(), operation):
        if wanted is None or status.digest == wanted:
            remove_warm(context.home, status.key)
            deleted.append(status)
    return deleted


def remove_stale(context: Context) -> int:
    """Delete the states that are never used again; returns how many."""
    stale = [key for key, record in warm_states(context.home) if record is None or _stale(context, key, record) is not None]
    for key in stale:
        remove_warm(context.home, key)
    return len(stale)


def _status(context: Context, key: str, record: SnapshotRecord | None) -> WarmStatus:
    folder = context.home.warm / key
    size = own_usage(folder)
    if record is None:
        return WarmStatus(key, "", "", 0, 0, 0, 0.0, size, stale="its record cannot be read")
    spec = record.spec
    return WarmStatus(
        key, record.image.name, record.image.digest, spec.cpus, spec.memory, spec.disk, record.created, size,
        stale=_stale(context, key, record),
    )  # fmt: skip


def _stale(context: Context, key: str, record: SnapshotRecord) -> str | None:
    from insula.images.catalogue import find

    if time.time() - record.created >= MAX_AGE:
        return "too old"
    with contextlib.suppress(InsulaError, FileNotFoundError):
        image = find(context.home, record.image.digest)
        if image is None:
            return "its image is gone"
        if key_of(context, image, record.spec) != key:
            return "made by another QEMU, or on another CPU"
    return None
