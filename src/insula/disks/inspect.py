"""Looks at a qcow2 layer that comes from elsewhere: first at its header ourselves, then with qemu-img in a closed room."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

from insula.errors import ChildFailed, DamagedRecord, HostLacks
from insula.host.process import Completed
from insula.isolation.tool import READABLE, run_tool
from insula.isolation.uids import jail_ids
from insula.model.text import clean

# QEMU's docs/interop/qcow2.rst: magic, version, backing file (offset, length), cluster bits, size, encryption.
_HEAD: Final = struct.Struct(">4sIQIIQI")
_MAGIC: Final = b"QFI\xfb"
_FEATURES_AT: Final = 72
_KNOWN_FEATURES: Final = 0b11000  # compression type, extended L2 entries; not: dirty, corrupt, external data file
_CPU_SECONDS: Final = 120


def check_header(head: bytes, most: int) -> None:
    """Pure: refuse a layer that names another file, is encrypted, or larger than ``most`` bytes. Raises DamagedRecord."""
    if len(head) < 104:
        raise _refusal("it ends early")
    magic, version, backing, backing_length, cluster_bits, size, encryption = _HEAD.unpack_from(head)
    if magic != _MAGIC or version not in (2, 3):
        raise _refusal("it is no qcow2 file")
    if backing or backing_length:
        raise _refusal("it names a backing file")
    if encryption:
        raise _refusal("it is encrypted")
    if version == 3 and struct.unpack_from(">Q", head, _FEATURES_AT)[0] & ~_KNOWN_FEATURES:
        raise _refusal("it is marked dirty or corrupt, keeps its data in another file, or has a feature unknown here")
    if not 9 <= cluster_bits <= 21 or not 0 < size <= most:
        raise _refusal("its size makes no sense")


def check_layer(path: Path, most: int, uuid: str) -> None:
    """Refuse a layer that is not whole or would make QEMU open anything else. The tool runs as the user of the machine ``uuid``.

    Raises DamagedRecord (``bad_layer``), HostLacks.
    """
    with path.open("rb") as file:
        check_header(file.read(104), most)
    found = _info(path, uuid)
    details = found.get("format-specific", {}).get("data", {})
    if found.get("format") != "qcow2" or not 0 < found.get("virtual-size", 0) <= most:
        raise _refusal("it is not what its header says")
    if any(key in found for key in ("backing-filename", "full-backing-filename")) or found.get("encrypted"):
        raise _refusal("it names a backing file or is encrypted")
    if "data-file" in details or details.get("corrupt") or found.get("dirty-flag"):
        raise _refusal("it keeps its data in another file, or is damaged")
    done = _qemu_img(["check", "-q", "-f", "qcow2", f"{READABLE}/0"], path, uuid)
    # 3: clusters that nobody uses, as a QEMU that was killed leaves them; that costs room, nothing else.
    if done.status not in (0, 3):
        raise _refusal(_last(done))


def _info(path: Path, uuid: str) -> dict[str, Any]:
    done = _qemu_img(["info", "-f", "qcow2", "--output=json", f"{READABLE}/0"], path, uuid)
    if done.status:
        raise _refusal(_last(done))
    try:
        untrusted = json.loads(done.stdout)
    except ValueError as cause:
        raise _refusal("qemu-img says nothing sensible of it") from cause
    return untrusted if isinstance(untrusted, dict) else {}


def _qemu_img(words: list[str], path: Path, uuid: str) -> Completed:
    uid = jail_ids(uuid).machine
    try:
        return run_tool(
            ["qemu-img", *words], readable=[path], uid=uid, seconds=_CPU_SECONDS, largest=0, check=False,
            timeout=10 * _CPU_SECONDS,
        )  # fmt: skip
    except ChildFailed as cause:
        raise HostLacks("qemu-img did not end in time", code="tool_failed") from cause


def _last(done: Completed) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return clean(lines[-1], longest=300) if lines else f"qemu-img ended with status {done.status}"


def _refusal(why: str) -> DamagedRecord:
    return DamagedRecord(f"a disk layer is not acceptable: {why}", code="bad_layer")
