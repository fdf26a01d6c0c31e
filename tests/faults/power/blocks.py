"""What the plain writers write: numbered blocks, read back through QEMU (on the doomed host) or without it (afterwards)."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.framework.qcow2 import read_chain

COUNT: Final = 12
SIZE: Final = 4096
_FIRST: Final = 5 << 30  # bytes; far from what an image has on its disk
_APART: Final = 3 * SIZE  # so that some share a cluster of qcow2 and some do not

Map = dict[str, int]  # block (as text, since it travels as JSON) -> the number last written there; none is left out


def place(block: int) -> int:
    return _FIRST + block * _APART


def content(uuid: str, block: int, number: int) -> bytes:
    """The bytes of a block: who wrote it, and a sum over all of it."""
    head = json.dumps({"uuid": uuid, "block": block, "number": number}).encode().ljust(256)
    body = (head * (SIZE // 256))[: SIZE - 32]
    return body + hashlib.sha256(body).digest()


def number_of(block: int, data: bytes) -> int:
    """The number in a block; 0 for one that was never written. Raises AssertionError when it was torn, or is another's."""
    if not any(data):
        return 0
    body, digest = data[:-32], data[-32:]
    assert hashlib.sha256(body).digest() == digest, f"block {block} is torn"
    said = json.loads(body[:256])
    assert said["block"] == block, f"block {block} holds what belongs into {said['block']}"
    return int(said["number"])


def read_map(chain: Sequence[Path]) -> Map:
    """What is in the blocks of a disk, whose files are given bottom to top."""
    data = read_chain(chain, [(place(block), SIZE) for block in range(COUNT)])
    return {str(block): number for block in range(COUNT) if (number := number_of(block, data[block]))}


class Disk:
    """A guest's disk, as it sees it: NBD's simple form, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md."""

    def __init__(self, path: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(os.fspath(path))
        assert self._take(16) == b"NBDMAGICIHAVEOPT"
        self._take(2)
        name = export.encode()
        # No zeroes after the answer; option 1 names the export and ends the negotiation.
        self._socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
        self._take(10)

    def close(self) -> None:
        self._socket.close()

    def read(self, block: int) -> bytes:
        self._ask(0, block)
        return self._take(SIZE)

    def write(self, block: int, data: bytes) -> None:
        self._ask(1, block, data)

    def flush(self) -> None:
        self._ask(3)

    def _ask(self, kind: int, block: int | None = None, data: bytes = b"") -> None:
        at, length = (0, 0) if block is None else (place(block), SIZE)
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, at, length) + data)
        magic, error, _ = struct.unpack(">IIQ", self._take(16))
        assert (magic, error) == (0x67446698, 0), f"the disk said {error}"

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            more = self._socket.recv(size - len(taken))
            if not more:
                raise ConnectionResetError("the disk is gone")
            taken += more
        return taken
