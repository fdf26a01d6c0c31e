from __future__ import annotations

from pathlib import Path

import pytest

from insula.engines.qemu.launch import PATIENCE, explain_failure, porter_words
from insula.engines.qemu.probe import EMULATED_CPU, Build, Notes, ask, choose, has_mapped_ram, parse_machine, parse_version
from insula.errors import HostLacks, MachineEnded
from insula.host.accelerators import Proof
from insula.store.machines import BoardRecord

BUILD = Build("/usr/bin/qemu-system-x86_64", "10.0.2", "pc-q35-10.0")


def notes(kvm: bool, tcg: bool = True) -> Notes:
    return Notes(1, "", BUILD, {"kvm": Proof(kvm, "no kvm", 0.1), "tcg": Proof(tcg, "no tcg", 0.1)})


def test_versions() -> None:
    assert parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright") == "10.0.2"
    assert parse_version("QEMU emulator version 8.2") == "8.2"
    for text in ("", "not QEMU at all", "QEMU emulator version unknown"):
        with pytest.raises(HostLacks):
            parse_version(text)


@pytest.mark.parametrize(("version", "fits"), [("7.2.22", False), ("8.1.5", False), ("8.2.0", True), ("11.0.0", True)])
def test_a_qemu_that_is_too_old_is_refused_by_its_version(tmp_path: Path, version: str, fits: bool) -> None:
    """Debian 12's own is 7.2. Here a program that says what a QEMU of that version says."""
    program = tmp_path / "qemu-system-x86_64"
    alias = "echo 'q35  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)'"
    program.write_text(f"#!/bin/sh\n[ $1 = -version ] && echo 'QEMU emulator version {version} (Debian)' || {alias}\n")
    program.chmod(0o755)
    if fits:
        assert ask(str(program)) == Build(str(program), version, "pc-q35-7.2")
        return
    with pytest.raises(HostLacks) as refused:
        ask(str(program))
    assert refused.value.code == "qemu_too_old"
    assert refused.value.message == f"QEMU {version} is too old: 8.2 or later is needed"
    assert refused.value.hint == "to install a later one: insula doctor --fix"


def test_machine_behind_q35() -> None:
    listing = (
        "pc-i440fx-8.2        Standard PC (default)\n"
        "q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-8.2)\n"
        "pc-q35-8.2           Standard PC (Q35 + ICH9, 2009)\n"
    )
    assert parse_machine(listing) == "pc-q35-8.2"
    with pytest.raises(HostLacks, match="no q35"):
        parse_machine("none   empty machine\n")


@pytest.mark.parametrize(("version", "has"), [("8.2", False), ("8.2.10", False), ("9.0.0", True), ("10.0.2", True)])
def test_who_can_map_memory_and_needs_no_userfaultfd(version: str, has: bool) -> None:
    assert has_mapped_ram(Build("qemu", version, "pc-q35-8.2")) is has


def test_the_first_accelerator_that_proved_itself_is_used() -> None:
    assert choose(notes(kvm=True), None) == BoardRecord("pc-q35-10.0", "host", "10.0.2", "kvm")
    assert choose(notes(kvm=False), None) == BoardRecord("pc-q35-10.0", EMULATED_CPU, "10.0.2", "tcg")
    with pytest.raises(HostLacks, match="kvm: no kvm; tcg: no tcg"):
        choose(notes(kvm=False, tcg=False), None)


def test_a_machine_keeps_its_hardware() -> None:
    former = BoardRecord("pc-q35-8.2", "Nehalem-v1", "8.2.1", "tcg")
    assert choose(notes(kvm=False), former) == BoardRecord("pc-q35-8.2", "Nehalem-v1", "10.0.2", "tcg")
    # The accelerator went or came: the CPU of the other kind cannot be had.
    assert choose(notes(kvm=True), former) == BoardRecord("pc-q35-8.2", "host", "10.0.2", "kvm")


def test_last_words_become_the_right_error() -> None:
    ended = explain_failure("QEMU ended at once (failed): qemu-system-x86_64: -device nonsense: not found")
    assert isinstance(ended, MachineEnded)
    assert "-device nonsense" in ended.message
    memory = explain_failure("QEMU ended at once (failed): cannot set up guest memory 'm': Cannot allocate memory")
    assert (type(memory), memory.code) == (HostLacks, "no_memory")
    jail = explain_failure("bwrap: No permissions to create new namespace")
    assert (type(jail), jail.code) == (HostLacks, "jail_refused")
    silent = explain_failure("")
    assert (silent.message, silent.code) == ("the keeper ended at once: it said nothing", "keeper_failed")
    late = explain_failure("not ready within 60 s: bwrap: something")  # as test_porter.py has it
    assert (type(late), late.code, late.hint) == (MachineEnded, "failed_to_start", "is the host overloaded?")
    assert late.message == "QEMU was not ready within 60 s: bwrap: something"


def test_the_porter_gives_up_before_who_waits_for_it() -> None:
    words = porter_words(7, ("insula", "_ended"))
    assert words[:2] + words[4:] == ["--ready-fd", "7", "--ended-argc", "2", "insula", "_ended"]
    assert words[2] == "--patience"
    assert 0 < float(words[3]) <= PATIENCE - 10
