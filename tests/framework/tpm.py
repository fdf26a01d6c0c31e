"""Words with a guest's TPM 2.0, spoken through /dev/tpm0. Format: TPM Library Specification, parts 2 (structures) and 3."""

from __future__ import annotations

import base64
import struct

import insula

PCR = 16  # free for whoever tries something

_SESSIONS = 0x8002
_OWNER, _PASSWORD = 0x40000001, 0x40000009
_INDEX = 0x01500001
_SHA256 = 0x000B
_EXTEND, _DEFINE, _WRITE, _READ = 0x182, 0x12A, 0x137, 0x14E
_ATTRIBUTES = 0x02060006  # owner and password may read and write; failures are not counted
_AUTHORIZATION = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)
_ROOM = 8


def extend(machine: insula.Machine, what: bytes) -> str:
    """Extend the register; what it is then."""
    _ask(machine, _EXTEND, [PCR], struct.pack(">IH", 1, _SHA256) + what.ljust(32, b"\0"))
    return register(machine)


def register(machine: insula.Machine) -> str:
    """The register, as the guest's kernel reads it: 0 since the last reset, but for what it was extended by."""
    return machine.exec("cat", f"/sys/class/tpm/tpm0/pcr-sha256/{PCR}", check=True).stdout.strip()


def define(machine: insula.Machine) -> None:
    """Make room for 8 bytes that outlive a reset."""
    public = struct.pack(">IHIHH", _INDEX, _SHA256, _ATTRIBUTES, 0, _ROOM)
    _ask(machine, _DEFINE, [_OWNER], struct.pack(">HH", 0, len(public)) + public)


def write(machine: insula.Machine, what: bytes) -> None:
    """Write to it."""
    assert len(what) == _ROOM
    _ask(machine, _WRITE, [_OWNER, _INDEX], struct.pack(">H", _ROOM) + what + struct.pack(">H", 0))


def read(machine: insula.Machine) -> bytes:
    """What is in it."""
    return _ask(machine, _READ, [_OWNER, _INDEX], struct.pack(">HH", _ROOM, 0))[16 : 16 + _ROOM]


def _ask(machine: insula.Machine, code: int, handles: list[int], parameters: bytes) -> bytes:
    """The whole answer, which must be one of success."""
    body = b"".join(struct.pack(">I", handle) for handle in handles) + _AUTHORIZATION + parameters
    question = base64.b64encode(struct.pack(">HII", _SESSIONS, 10 + len(body), code) + body).decode()
    script = (
        f"echo {question} | base64 -d > /run/question; exec 3<>/dev/tpm0; cat /run/question >&3; dd bs=4096 count=1 <&3 | base64"
    )
    answer = base64.b64decode(machine.exec("sh", "-e", "-c", script, check=True).stdout)
    assert struct.unpack_from(">I", answer, 6)[0] == 0, f"the TPM refused: {answer.hex()}"
    return answer
