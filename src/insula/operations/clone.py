"""Clone: a new stopped machine from a stopped one, sharing its layers or, if wanted, with all files of its own.

freeze the source's heads → stage a folder → link or copy → new identity → publish
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec

from insula.disks.layers import copy_layer, link_layer
from insula.disks.overlays import create_overlay
from insula.errors import AlreadyExists
from insula.model.names import check_machine_name
from insula.model.requests import CloneMachine
from insula.model.status import MachineStatus
from insula.operations import journal
from insula.operations.capture import captured
from insula.operations.context import Context
from insula.operations.hold import hold_machine, status_of
from insula.operations.identities import own_identity
from insula.operations.merge import merge_behind, merge_first
from insula.operations.operation import Operation
from insula.operations.promises import check_disk
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import DiskRecord, MachineRecord, new_machine_folder, publish_machine, write_machine
from insula.store.tpm import make_tpm, read_tpm


def clone(context: Context, request: CloneMachine, operation: Operation) -> MachineStatus:
    """Clone a stopped machine. Raises NotFound, WrongState, UsageError, AlreadyExists, HostLacks; then there is none."""
    check_machine_name(request.new_name)
    merge_first(context, request.name, Operation("merge", request.name))
    with hold_machine(context, request.name, "clone") as held:
        if context.home.machine(request.new_name).exists():
            raise AlreadyExists(f"the name '{request.new_name}' is taken", code="name_taken", hint="choose another")
        check_disk(context, operation, sum(disk.size for disk in held.record.disks), whose="the clone's disk")
        with captured(context, held, operation, lasting=False) as state, new_machine_folder(context.home, "clone") as staged:
            operation.tell("copy its layers" if request.full else "link its layers")
            record = _fill(staged, held.folder, state.machine, full=request.full)
            operation.tell("give it its name")
            with own_identity(context.home) as identity:
                write_machine(
                    staged, msgspec.structs.replace(record, id=identity.uuid, identity=identity, limits=record.limits.inherited)
                )
                folder = publish_machine(context.home, staged, request.new_name)
            append_event(folder, "cloned", origin=request.name)
            merge_behind(context, state.machine)
        journal.clear(held.folder)
        return status_of(folder)


def _fill(staged: Path, source: Path, record: MachineRecord, *, full: bool) -> MachineRecord:
    """All of a machine's files but its record, which is returned and has no identity of its own yet."""
    for place in (names.DISKS, names.LAYERS):
        (staged / place).mkdir(mode=0o700)
    take = copy_layer if full else link_layer
    layers = [layer for disk in record.disks for layer in disk.layers]
    for path in (*layers, *(path for path in (record.boot.kernel, record.boot.initrd) if path is not None)):
        take(source / path, staged / path)
    disks = []
    for disk in record.disks:
        head = f"{names.DISKS}/{disk.name}-0.qcow2"
        create_overlay(staged / head, disk.size)
        disks.append(DiskRecord(name=disk.name, layers=disk.layers, head=head, size=disk.size))
    if (source / record.variables).exists():
        (staged / names.FIRMWARE).mkdir(mode=0o700)
        shutil.copyfile(source / record.variables, staged / record.variables)
    if record.spec.tpm:
        make_tpm(staged / record.tpm, read_tpm(source / record.tpm))
    return msgspec.structs.replace(
        record, created=time.time(), disks=disks, parent=None, ephemeral=False, nics=[], published=[], shape=None
    )
