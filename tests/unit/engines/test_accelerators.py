from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import insula
from insula.host import accelerators
from insula.host.accelerators import _judge, payload
from insula.host.watch import Watch


def test_the_guest_is_what_its_source_says(tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("needs binutils")
    source = Path(accelerators.__file__).with_name("longmode.S")
    subprocess.run(["as", "--64", source, "-o", tmp_path / "l.o"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "l.o", tmp_path / "l.bin"], check=True)
    assert (tmp_path / "l.bin").read_bytes() == payload()


def test_the_guest_is_a_rom_that_begins_at_the_reset_vector() -> None:
    assert len(payload()) == 65536
    assert payload()[0xFFF0:0xFFF5] == bytes([0xEA, 0, 0, 0, 0xF0])


def test_a_proof_ends_with_whoever_asked_and_leaves_no_file(tmp_path: Path) -> None:
    """Else a `kill -9` of the first command on a host whose KVM hangs would leave a QEMU for ever."""
    (tmp_path / "folder").mkdir()
    hangs = tmp_path / "qemu"
    hangs.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/began.new; mv {tmp_path}/began.new {tmp_path}/began; exec sleep 600\n")
    hangs.chmod(0o755)
    asks = f"from insula.host.accelerators import prove; prove({str(hangs)!r}, 'tcg', 'max')"
    environment = os.environ | {"TMPDIR": str(tmp_path / "folder"), "PYTHONPATH": str(Path(insula.__file__).parents[1])}
    asker = subprocess.Popen([sys.executable, "-c", asks], env=environment)
    with Watch() as watch:
        watch.add(tmp_path)
        while not (tmp_path / "began").exists():
            watch.wait_change()
    qemu = os.pidfd_open(int((tmp_path / "began").read_text()))
    asker.kill()
    asker.wait()
    assert select.select([qemu], [], [], 60)[0], "it is still there"
    os.close(qemu)
    assert list((tmp_path / "folder").iterdir()) == []


def test_only_the_answer_is_a_proof() -> None:
    assert _judge(0x55, "", 0.1).works
    assert _judge(0x55, "a warning", 0.1).works
    for status in (0, 1, 0x54, 0x57, -9):
        assert not _judge(status, "", 0.1).works
    assert _judge(2 * 6 + 1, "", 0.1).detail == "a 64-bit guest failed at user mode"
    assert (
        _judge(1, "qemu: first\nqemu: Could not access KVM kernel module\n", 0.1).detail
        == "qemu: Could not access KVM kernel module"
    )
