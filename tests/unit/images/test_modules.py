"""Kernel modules: which are needed, and in what order."""

from __future__ import annotations

import gzip
import lzma

import pytest

from insula.errors import InsulaError
from insula.images.modules import decompress, dependencies, load_order, module_name, read_builtin


def module(depends: str) -> bytes:
    return b"\x7fELF....license=GPL\0depends=" + depends.encode() + b"\0intree=Y\0"


MODULES = {
    "virtio_net": module("net-failover"),
    "net_failover": module("failover"),
    "failover": module(""),
    "virtio_blk": module(""),
    "lost": module("nowhere"),
}


def test_what_is_needed_comes_first() -> None:
    assert load_order(["virtio-net", "virtio_blk", "failover"], MODULES, frozenset()) == [
        "failover",
        "net_failover",
        "virtio_net",
        "virtio_blk",
    ]


def test_what_is_built_in_is_left_out() -> None:
    assert load_order(["virtio_net", "ext4"], MODULES, frozenset({"ext4", "net_failover"})) == ["virtio_net"]


@pytest.mark.parametrize("name", ["absent", "lost"])
def test_a_missing_module_is_told(name: str) -> None:
    with pytest.raises(InsulaError, match="no module") as error:
        load_order([name], MODULES, frozenset())
    assert error.value.code == "module_missing"


def test_names_and_fields() -> None:
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz") == "virtio_rng"
    assert dependencies(module("a-b,c")) == ["a_b", "c"]
    assert dependencies(b"no fields at all") == []
    assert read_builtin("kernel/fs/ext4/ext4.ko\nkernel/a/b-c.ko\n") == {"ext4", "b_c"}


def test_compressed_modules_become_plain() -> None:
    plain = module("x")
    assert decompress("a.ko", plain) == plain
    assert decompress("a.ko.xz", lzma.compress(plain)) == plain
    assert decompress("a.ko.gz", gzip.compress(plain)) == plain
    with pytest.raises(InsulaError):
        decompress("a.ko.zst", plain)
