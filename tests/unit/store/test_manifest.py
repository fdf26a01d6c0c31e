"""What an exported snapshot says of itself is held to what Insula would have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from insula.errors import DamagedRecord
from insula.store.manifest import Manifest, decode_manifest, encode_manifest

DIGEST = "ab" * 32
ID = "6a204bd8-9c1a-4f0e-8f43-0c9d9d4a2f11"
MIB = 1 << 20


def a_manifest() -> dict[str, Any]:
    layers = ["layers/0123-root.qcow2", "layers/root-1a2b3c4d.qcow2"]
    sums = {path: {"size": 10 * MIB, "sha256": DIGEST} for path in (*layers, "layers/0123-vmlinuz", "state")}
    sums["memory"] = {"size": 130 * MIB, "sha256": DIGEST, "sparse": True}
    return {
        "machine": "web", "name": "before", "host_cpu": "", "data": dict.fromkeys(sums, MIB),
        "record": {
            "version": 1, "id": ID, "created": 1.0, "description": "a line", "state": "running", "parent": None,
            "image": {"name": "tiny", "digest": DIGEST},
            "spec": {"cpus": 1, "memory": 128 * MIB, "disk": 1 << 30, "network": "nat", "firmware": "bios"},
            "identity": {"uuid": ID, "generation": ID, "machine_id": "ab" * 16, "mac": "52:54:00:12:34:56"},
            "boot": {"kind": "direct", "kernel": "layers/0123-vmlinuz", "initrd": None, "cmdline": "quiet", "agent": True},
            "arch": "amd64",
            "board": {"machine": "pc-q35-10.0", "cpu": "EPYC-v1,-svm", "qemu": "10.0.2", "accelerator": "tcg", "balloon": False},
            "disks": [{"name": "root", "layers": layers, "size": 1 << 30, "head": None}],
            "memory": {"method": "mapped-ram", "offset": MIB, "pause": 0.01},
            "sums": sums,
        },
    }  # fmt: skip


def decode(value: dict[str, Any]) -> Manifest:
    return decode_manifest(json.dumps(value).encode())


def test_a_good_one_is_understood_and_written_the_same() -> None:
    manifest = decode(a_manifest())
    assert manifest.files == sorted(
        ["layers/0123-root.qcow2", "layers/0123-vmlinuz", "layers/root-1a2b3c4d.qcow2", "memory", "state"]
    )
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_description_is_made_harmless() -> None:
    value = a_manifest()
    value["record"]["description"] = "\x1b[2Jhello" + "x" * 5000
    description = decode(value).record.description
    assert description.startswith("\\x1b[2Jhello")
    assert len(description) <= 1000


def changed(*path: Any) -> Callable[[Any], dict[str, Any]]:
    def change(new: Any) -> dict[str, Any]:
        value: Any = a_manifest()
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = new
        found: dict[str, Any] = value
        return found

    return change


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("unknown",), 1),
        (("record", "version"), 99),
        (("record", "id"), "../../etc"),
        (("record", "identity", "uuid"), "x"),
        (("record", "identity", "mac"), "52:54:00:12:34:56,x=y"),
        (("record", "identity", "machine_id"), "../x"),
        (("record", "parent"), "x"),
        (("record", "image", "digest"), "../../x"),
        (("record", "image", "name"), "a\nb"),
        (("record", "board", "cpu"), "max;-drive file=/etc/shadow"),
        (("record", "board", "machine"), "pc,kernel=/etc/shadow"),
        (("record", "board", "qemu"), "\x1b[2J"),
        (("record", "board", "accelerator"), "tcg,x=/y"),
        (("record", "board"), None),
        (("record", "boot", "cmdline"), "x\ny"),
        (("record", "boot", "cmdline"), "x" * 5000),
        (("record", "boot", "kernel"), None),
        (("record", "boot", "kernel"), "layers/../../etc/shadow"),
        (("record", "boot", "kernel"), "layers/0123-root.qcow2"),
        (("record", "boot", "kernel"), "/etc/shadow"),
        (("record", "disks"), []),
        (("record", "disks", 0, "name"), "../x"),
        (("record", "disks", 0, "head"), "disks/x"),
        (("record", "disks", 0, "layers"), []),
        (("record", "disks", 0, "layers", 0), "layers/.hidden"),
        (("record", "disks", 0, "layers", 0), "machine.json"),
        (("record", "disks", 0, "size"), 1 << 60),
        (("record", "disks", 0, "size"), 1000),
        (("record", "spec", "memory"), 1 << 60),
        (("record", "spec", "memory"), 2 << 30),
        (("record", "spec", "cpus"), 100_000),
        (("record", "memory", "offset"), -4096),
        (("record", "memory", "offset"), 4097),
        (("record", "memory", "offset"), 100 * MIB),
        (("record", "memory", "offset"), None),
        (("record", "memory"), None),
        (("record", "state"), "stopped"),
        (("record", "state"), "flying"),
        (("record", "sums", "memory", "sha256"), "x"),
        (("record", "sums", "memory", "size"), 1 << 50),
        (("record", "sums", "memory", "sparse"), False),
        (("record", "sums", "state", "sparse"), True),
        (("record", "sums", "state", "size"), -1),
        (("record", "sums", "state", "size"), 1 << 40),
        (("record", "sums", "layers/0123-vmlinuz", "size"), 1 << 40),
        (("record", "sums", "layers/root-1a2b3c4d.qcow2", "size"), 1 << 40),
        (("record", "sums", "authorized_keys"), {"size": 1, "sha256": DIGEST}),
        (("record", "sums", "layers/more"), {"size": 1, "sha256": DIGEST}),
        (("data", "memory"), 1 << 40),
        (("data", "memory"), -1),
        (("data", "more"), 1),
        (("data",), {}),
        (("host_cpu",), "\x1b[2J"),
    ],
)
def test_what_is_refused(path: tuple[Any, ...], new: Any) -> None:
    value = changed(*path)(new)
    if path[:2] == ("record", "sums") and path[-1] not in ("sha256", "size", "sparse"):
        value["data"][path[-1]] = 1
    with pytest.raises(DamagedRecord) as refused:
        decode(value)
    assert refused.value.code == "parcel_damaged"


def test_nonsense_is_refused() -> None:
    for content in (b"", b"{}", b"[1]", b"\xff", b'{"machine":' * 10_000, msgspec.json.encode({"record": None})):
        with pytest.raises(DamagedRecord):
            decode_manifest(content)
