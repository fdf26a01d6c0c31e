"""Export: one snapshot, memory included, as a single stream of bytes for another computer.

    under the machine's lock: check its files, open them → without it: write the stream from what is open

So the machine is free again at once, and nothing that happens to it or to the snapshot disturbs the export.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from insula.disks.verify import ensure_sums
from insula.host.cpu import host_cpu
from insula.model.requests import ExportSnapshot
from insula.model.status import ExportStatus
from insula.model.transfer import Transfer
from insula.operations.context import Context
from insula.operations.hold import hold_machine
from insula.operations.operation import Operation
from insula.operations.snapshot import find_snapshot
from insula.store.manifest import Manifest, encode_manifest
from insula.store.parcel import ParcelWriter, data_ranges


def export(context: Context, request: ExportSnapshot, operation: Operation, transfer: Transfer) -> ExportStatus:
    """Write a snapshot to ``transfer.file``, sealed if that knows a passphrase.

    Raises NotFound, DamagedRecord (a file was changed), Busy, HostLacks, OSError of the file.
    """
    with contextlib.ExitStack() as opened:
        with hold_machine(context, request.name, "export") as held:
            place, record = find_snapshot(held.folder, request.snapshot)
            operation.tell("check its files")
            ensure_sums(held.folder, place, record.sums)
            files = {path: _open(held.folder / path if "/" in path else place / path, opened) for path in sorted(record.sums)}
        data = {path: _data(descriptor) for path, descriptor in files.items()}
        cpu = record.host_cpu or (host_cpu() if record.board is not None and record.board.cpu == "host" else "")
        manifest = Manifest(request.name, request.snapshot, cpu, data, record)
        written = _write(transfer, manifest, files, operation)
    return ExportStatus(machine=request.name, name=request.snapshot, data=written, encrypted=transfer.passphrase is not None)


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    opened.callback(os.close, descriptor)
    return descriptor


def _data(descriptor: int) -> int:
    return sum(end - start for start, end in data_ranges(descriptor, os.fstat(descriptor).st_size))


def _write(transfer: Transfer, manifest: Manifest, files: dict[str, int], operation: Operation) -> int:
    writer, total, done = ParcelWriter(transfer), sum(manifest.data.values()), 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        operation.tell("write it", done / total if total else 1.0)

    writer.manifest(encode_manifest(manifest))
    for path in manifest.files:
        writer.file(files[path], told)
    writer.end()
    return done
