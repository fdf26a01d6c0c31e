"""Create: make a stopped machine from an image.

    check → find or build the image → stage a folder → link its layers → make the head → write the record → publish

Everything happens in a staging folder that gets its name at the very end: a crash leaves no half-made machine, only a
folder that the next command sweeps away.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from insula.errors import AlreadyExists, UsageError
from insula.model.identity import new_identity
from insula.model.names import check_machine_name, generate_machine_name
from insula.model.requests import CreateMachine
from insula.model.spec import check_spec
from insula.model.status import MachineStatus, State
from insula.model.units import format_size
from insula.operations import journal
from insula.operations.cards import network_named, with_cards
from insula.operations.context import Context
from insula.operations.hold import status_of
from insula.operations.identities import own_identity
from insula.operations.image import find_or_build
from insula.operations.limiting import check
from insula.operations.operation import Operation
from insula.operations.promises import check_disk
from insula.operations.recover import sweep
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import (
    RECORD_VERSION,
    Boot,
    DiskRecord,
    ImageUse,
    MachineRecord,
    new_machine_folder,
    publish_machine,
    write_machine,
)

if TYPE_CHECKING:
    from insula.images.record import Image

ROOT = "root"


def create(context: Context, request: CreateMachine, operation: Operation) -> MachineStatus:
    """Make a machine. Raises UsageError, AlreadyExists, NotFound (no such image), HostLacks; then nothing is left."""
    if request.dry_run:
        check_spec(request.spec)
        check(request.limits)
        return _planned(_free_name(context, request.name), request)
    name, image = prepare(context, request, operation)
    with created(context, request, name, image, operation) as folder:
        journal.clear(folder)
        return status_of(folder)


@contextlib.contextmanager
def created(context: Context, request: CreateMachine, name: str, image: Image, operation: Operation) -> Iterator[Path]:
    """Make the machine that was prepared and hold its lock from its first instant on. Raises as `create`.

    An ephemeral machine begins with a journal: until whoever makes it has started it, it goes when he dies.
    """
    with new_machine_folder(context.home, operation.verb) as staged:
        operation.tell("make its disk")
        record = fill(staged, request, image)
        journal.note(staged, "create", "give it its name")
        operation.tell("give it its name")
        with own_identity(context.home) as identity:
            record = msgspec.structs.replace(record, id=identity.uuid, identity=identity)
            write_machine(staged, with_cards(context, record, addresses=request.addresses))
            folder = publish_machine(context.home, staged, name)
        append_event(folder, "created", image=request.image, digest=image.digest)
        yield folder


def prepare(context: Context, request: CreateMachine, operation: Operation) -> tuple[str, Image]:
    """The name a machine is to have, and its image, built if need be. Raises as `create`."""
    check_spec(request.spec)
    check(request.limits)
    name = _free_name(context, request.name)
    check_connection(context, name, request)
    operation.target = name
    context.home.prepare()
    sweep(context)
    check_disk(context, operation, request.spec.disk)  # before an image is built for a machine that may not be
    image = find_or_build(context, request.image, operation)
    if request.spec.disk < image.disk_bytes:
        raise UsageError(
            f"a disk of {format_size(request.spec.disk)} is too small: {request.image} needs {format_size(image.disk_bytes)}",
            code="bad_size",
            hint=f"ask for --disk {format_size(image.disk_bytes)} or more",
        )
    return name, image


def check_connection(context: Context, name: str, request: CreateMachine) -> None:
    """Ahead of building an image for a machine that could not be connected so. Raises UsageError, NotFound, AlreadyExists."""
    from insula.model.network import check_firewall
    from insula.operations.firewall import check_peers
    from insula.operations.ports import check_free

    check_peers(context.home, request.firewall.rules)
    for network in request.spec.networks:
        check_firewall(network_named(context.home, network).spec, request.firewall)
    check_free(context.home, name, list(request.published))


def _free_name(context: Context, wanted: str) -> str:
    if wanted:
        check_machine_name(wanted)
        if context.home.machine(wanted).exists():
            raise AlreadyExists(
                f"the name '{wanted}' is taken", code="name_taken", hint="choose another, or delete that machine first"
            )
        return wanted
    while context.home.machine(name := generate_machine_name()).exists():
        pass
    return name


def _planned(name: str, request: CreateMachine) -> MachineStatus:
    spec = request.spec
    return MachineStatus(
        name=name, kind="vm", state=State.STOPPED, image=request.image, addresses=[], cpus=spec.cpus, memory=spec.memory,
        disk=spec.disk, created=time.time(), ephemeral=request.ephemeral,
    )  # fmt: skip


def fill(staged: Path, request: CreateMachine, image: Image) -> MachineRecord:
    """All of a machine's files but its record; that, with an identity that may not be its last one."""
    from insula.disks.layers import link_layer
    from insula.disks.overlays import create_overlay

    (staged / names.DISKS).mkdir(mode=0o700)
    (staged / names.LAYERS).mkdir(mode=0o700)
    short = image.digest[:16]
    layer = f"{names.LAYERS}/{short}-{names.ROOT_LAYER}"
    link_layer(image.root_layer, staged / layer)
    head = f"{names.DISKS}/{ROOT}-0.qcow2"
    create_overlay(staged / head, request.spec.disk)
    sums = {layer: image.record.files[names.ROOT_LAYER]}
    identity = new_identity()
    boot = _boot(staged, image, short)
    if boot.kernel and boot.initrd:
        sums |= {boot.kernel: image.record.files[names.KERNEL], boot.initrd: image.record.files[names.INITRD]}
    return MachineRecord(
        version=RECORD_VERSION,
        id=identity.uuid,
        kind="vm",
        created=time.time(),
        image=ImageUse(name=request.image, digest=image.digest),
        spec=request.spec,
        identity=identity,
        boot=boot,
        disks=[DiskRecord(name=ROOT, layers=[layer], head=head, size=request.spec.disk)],
        arch=image.record.arch,
        ephemeral=request.ephemeral,
        sums=sums,
        published=list(request.published),
        firewall=request.firewall,
        limits=request.limits,
        insecure=request.insecure,
    )


def _boot(staged: Path, image: Image, short: str) -> Boot:
    from insula.disks.layers import link_layer

    if image.boot == "disk":
        return Boot(kind="disk")
    kernel, initrd = f"{names.LAYERS}/{short}-{names.KERNEL}", f"{names.LAYERS}/{short}-{names.INITRD}"
    link_layer(image.kernel, staged / kernel)
    link_layer(image.initrd, staged / initrd)
    return Boot(kind="direct", kernel=kernel, initrd=initrd, cmdline=image.cmdline)
