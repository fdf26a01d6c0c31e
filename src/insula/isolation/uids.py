"""Which user a machine's processes run as.

As root every machine has an id of its own, computed from the machine's UUID, so nothing need be remembered or freed (a new
machine gets a UUID whose id no other has: operations/identities.py); its network helper and its TPM have others. No file ever
belongs to these ids, but for what the TPM keeps: all else that a jailed process may write is handed in open.

An ordinary user's machines run as that user. What keeps them from the user's other processes and files is the jail itself: no
path, process, socket or network of the host exists inside it.
"""

from __future__ import annotations

import os
import uuid
import zlib
from pathlib import Path
from typing import Final

import msgspec

# Above every range distributions hand out (/etc/subuid, systemd-nspawn, the package builder's), below 2**31.
_FIRST: Final = 1_000_000_000
_COUNT: Final = 2**28
_KINDS: Final = 3


class JailIds(msgspec.Struct, frozen=True):
    """Host ids for QEMU with its keeper, for the machine's network helper and for its TPM. None: the caller's own."""

    machine: int | None
    network: int | None
    tpm: int | None


def jail_ids(machine_uuid: str) -> JailIds:
    """The ids of a machine on this host."""
    if os.geteuid() != 0:
        return JailIds(None, None, None)
    return ids_from_map(machine_uuid, Path("/proc/self/uid_map").read_text())


def ids_from_map(machine_uuid: str, uid_map: str) -> JailIds:
    """Pure: as above, for a root whose user namespace has ``uid_map`` (format: user_namespaces(7)).

    Where the usual range is not mapped (root of a container), the upper half of the highest mapped range is used.
    """
    first, count = _FIRST, _COUNT
    if not _maps(uid_map, first, _KINDS * count):
        start, length = max(((inside, size) for inside, size in _ranges(uid_map)), default=(0, 0))
        count = length // (2 * _KINDS)
        first = start + length - _KINDS * count
    if count == 0:
        return JailIds(None, None, None)
    place = uuid.UUID(machine_uuid).int % count
    return JailIds(*(first + kind * count + place for kind in range(_KINDS)))


def _ranges(uid_map: str) -> list[tuple[int, int]]:
    rows = (line.split() for line in uid_map.splitlines())
    return [(int(row[0]), int(row[2])) for row in rows if len(row) == 3]


def _maps(uid_map: str, first: int, count: int) -> bool:
    return any(start <= first and first + count <= start + size for start, size in _ranges(uid_map))


_SERVICES: Final = 2_100_000_000  # above all machines', below 2**31
_SERVICE_COUNT: Final = 40_000_000


def service_id(name: str) -> int | None:
    """The host id of a program that serves networks (``name`` tells it from others). None: the caller's own."""
    if os.geteuid() != 0:
        return None
    uid = _SERVICES + zlib.crc32(name.encode()) % _SERVICE_COUNT
    if _maps(Path("/proc/self/uid_map").read_text(), uid, 1):
        return uid
    return jail_ids(str(uuid.uuid5(uuid.NAMESPACE_OID, name))).network
