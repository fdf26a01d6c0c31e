"""What an exported snapshot says of itself, and what is accepted of it. See docs/snapshots.md, "As one file".

A manifest comes from another computer, perhaps from a malicious one: each field is held to what Insula itself would have written.
Names of files never reach the disk: on import layers are named after their content.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

import msgspec

from insula.errors import InsulaError
from insula.model.network import Nic
from insula.model.shape import check_shape
from insula.model.spec import MOST_NETWORKS, check_spec
from insula.model.text import clean
from insula.store import names
from insula.store.envelope import damaged
from insula.store.records import decode_record, upgrade_shape
from insula.store.snapshots import SNAPSHOT_VERSION, SnapshotRecord, snapshot_layers
from insula.store.tpm import MOST_BYTES

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_MOST_DISKS: Final = 5
_MOST_LAYERS: Final = 4096
_MOST_DESCRIPTION: Final = 1000
_MOST_CMDLINE: Final = 2048  # what Linux takes
_PAGE: Final = 4096
# Beyond the guest's memory: the screen's, firmware, and what QEMU keeps beside them.
_OTHER_MEMORY: Final = _GIB

_LAYER: Final = re.compile(r"layers/[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
_DISK: Final = re.compile(r"[a-z][a-z0-9-]{0,19}")
_MAC: Final = re.compile(r"52:54:00(:[0-9a-f]{2}){3}")
_ANY_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_HEX8: Final = re.compile(r"[0-9a-f]{8}")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_MACHINE_TYPE: Final = re.compile(r"[a-z0-9-]{1,32}-\d{1,3}\.\d{1,3}")
_CPU: Final = re.compile(r"[A-Za-z0-9_.=,+-]{1,400}")
_WORD: Final = re.compile(r"[A-Za-z0-9_.:+~-]{1,100}")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``machine`` and ``name`` are what the snapshot was called; ``data`` the bytes of each file that are no holes; ``host_cpu``
    the CPU it was taken on where the guest sees that, else empty. The files follow in the order of their names.

    Those of the snapshot's own folder have bare names, layers and kernels are below ``layers/``.
    """

    machine: str
    name: str
    host_cpu: str
    data: dict[str, int]
    record: SnapshotRecord

    @property
    def files(self) -> list[str]:
        return sorted(self.record.sums)


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest)


def decode_manifest(untrusted: bytes) -> Manifest:
    """The manifest, with nothing in it that could do harm. Raises DamagedRecord (``parcel_damaged``)."""
    try:
        manifest = decode_record(untrusted, Manifest, _upgrade)
        check_spec(manifest.record.spec)
    except (msgspec.MsgspecError, InsulaError) as cause:
        raise damaged("its list of contents makes no sense") from cause
    _require(manifest.record.version <= SNAPSHOT_VERSION, "its record is of a newer Insula")
    _require(len(manifest.host_cpu) <= 200 and manifest.host_cpu.isprintable(), "its CPU makes no sense")
    _check_words(manifest.record)
    _check_disks(manifest.record)
    _check_files(manifest)
    description = clean(manifest.record.description, longest=_MOST_DESCRIPTION)
    record = msgspec.structs.replace(manifest.record, description=description, host_cpu=manifest.host_cpu)
    return msgspec.structs.replace(manifest, record=record)


def _upgrade(manifest: object) -> object:
    if isinstance(manifest, dict) and "record" in manifest:
        return manifest | {"record": upgrade_shape(manifest["record"])}
    return manifest


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise damaged(what)


def _check_words(record: SnapshotRecord) -> None:
    identity, board, boot = record.identity, record.board, record.boot
    for text in (record.id, identity.uuid, identity.generation, *([record.parent] if record.parent else [])):
        _require(_is_uuid(text), "an id is none")
    macs = len(identity.macs) <= MOST_NETWORKS and all(_MAC.fullmatch(mac) for mac in identity.macs)
    _require(bool(_HEX32.fullmatch(identity.machine_id) and macs), "an identity makes no sense")
    _require(all(_WORD.fullmatch(name) for name in record.spec.networks), "its networks make no sense")
    _require(
        all(_makes_sense(nic) for nic in record.nics) and len(record.nics) <= MOST_NETWORKS, "its network cards make no sense"
    )
    _require(bool(_HEX64.fullmatch(record.image.digest) and _WORD.fullmatch(record.image.name)), "its image makes no sense")
    _require(0 <= record.created < 1 << 40, "its time makes no sense")
    _require(bool(_WORD.fullmatch(record.arch)), "its architecture makes no sense")
    if board is not None:
        words = (_MACHINE_TYPE.fullmatch(board.machine), _CPU.fullmatch(board.cpu), _WORD.fullmatch(board.qemu))
        _require(all(words) and bool(_WORD.fullmatch(board.accelerator)), "its board makes no sense")
    _require(record.shape is None or check_shape(record.shape), "its CPUs and memory make no sense")
    _require(len(boot.cmdline) <= _MOST_CMDLINE and boot.cmdline.isprintable(), "its kernel's command line makes no sense")
    _require((boot.kind == "direct") == (boot.kernel is not None), "it has a kernel and none")


def _makes_sense(nic: Nic) -> bool:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address

    inner = nic.inner
    try:
        if inner is not None:
            IPv4Interface(inner.address)
            IPv4Address(inner.gateway)
        if nic.ipv4 is not None:
            IPv4Address(nic.ipv4)
        if nic.ipv6 is not None:
            IPv6Address(nic.ipv6)
    except ValueError:
        return False
    macs = [nic.mac, *((inner.mac, inner.gateway_mac) if inner is not None else ())]
    named = all(_HEX8.fullmatch(text) for text in (nic.key, nic.network)) and all(_ANY_MAC.fullmatch(mac) for mac in macs)
    return named and 0 <= nic.slot < MOST_NETWORKS


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _check_disks(record: SnapshotRecord) -> None:
    _require(1 <= len(record.disks) <= _MOST_DISKS, "it has no disk, or too many")
    _require(len({disk.name for disk in record.disks}) == len(record.disks), "two disks have one name")
    for disk in record.disks:
        _require(bool(_DISK.fullmatch(disk.name)) and disk.head is None, "a disk makes no sense")
        _require(1 <= len(disk.layers) <= _MOST_LAYERS, "a disk has no layers, or too many")
        _require(0 < disk.size <= _most_disk() and disk.size % 512 == 0, "a disk's size makes no sense")
        _require(len(set(disk.layers)) == len(disk.layers), "a layer is in a disk twice")
    layers = [layer for disk in record.disks for layer in disk.layers]
    kernels = [path for path in (record.boot.kernel, record.boot.initrd) if path is not None]
    _require(len({*layers, *kernels}) == len(layers) + len(kernels), "a file has two places")


def _most_disk() -> int:
    from insula.model.spec import MOST_DISK

    return MOST_DISK


def _check_files(manifest: Manifest) -> None:
    record = manifest.record
    own = {path for path in record.sums if "/" not in path}
    outside = snapshot_layers(record)
    _require(outside == set(record.sums) - own and all(_LAYER.fullmatch(path) for path in outside), "its files make no sense")
    kept = {names.VARIABLES, names.TPM} if record.spec.tpm else {names.VARIABLES}
    _require(own - kept == _own_files(record), "it has other files than a snapshot has")
    _require(set(manifest.data) == set(record.sums), "its list of data makes no sense")
    for path, entry in record.sums.items():
        _require(bool(_HEX64.fullmatch(entry.sha256)) and entry.sparse == (path == names.MEMORY), "a sum makes no sense")
        _require(0 <= entry.size <= most_bytes(record, path), "a file is too large")
        _require(0 <= manifest.data[path] <= -(-entry.size // 65536) * 65536, "a file has more data than bytes")
    if record.memory is not None and record.memory.offset is not None:
        offset, size = record.memory.offset, record.sums[names.MEMORY].size
        _require(offset % _PAGE == 0 and 0 <= offset <= size - record.hardware.memory, "its memory is not where it says")


def _own_files(record: SnapshotRecord) -> set[str]:
    """The files a snapshot has in its own folder, UEFI variables and its TPM aside."""
    if record.memory is None:
        _require(record.state == "stopped", "it ran and has no memory")
        return set()
    _require(record.state != "stopped" and record.board is not None, "it has memory and did not run")
    return {names.STATE} if record.memory.offset is None else {names.MEMORY, names.STATE}


def most_bytes(record: SnapshotRecord, path: str) -> int:
    """How large a file of a snapshot of this shape can be: pure, and generous."""
    total = record.hardware.total
    memory = total + total // 64 + _OTHER_MEMORY
    if path in (names.MEMORY, names.STATE):
        return memory
    if path == names.VARIABLES:
        return 64 * _MIB
    if path == names.TPM:
        return MOST_BYTES
    if path in (record.boot.kernel, record.boot.initrd):
        return 2 * _GIB
    size = next(disk.size for disk in record.disks if path in disk.layers)
    return size + size // 64 + _GIB  # QEMU's tables, and clusters nobody uses any more
