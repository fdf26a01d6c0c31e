"""What a guest held in memory is on disk while snapshots, suspended states and warm states are: nobody but those who load it may
read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.host.process import run
from insula.isolation.uids import jail_ids
from insula.store import names
from insula.store.machines import machine_uuids
from insula.store.names import Home

pytestmark = pytest.mark.limit(180)


@pytest.fixture(scope="module")
def kept(home: Path, tiny: str) -> Iterator[Path]:
    """The folder of a machine with a snapshot and a suspended state; it was itself forked from a warm state."""
    machine = insula.connect(home).run(tiny, name="memory-modes", memory="128M", network="none")
    try:
        machine.snapshot("kept")
        machine.suspend()
        yield home / "machines" / machine.name
    finally:
        machine.delete(force=True)


def _memories(home: Path) -> list[Path]:
    return [path for name in (names.MEMORY, names.STATE) for path in home.rglob(name) if path.is_file()]


def test_files_of_memory_are_closed_to_others(home: Path, kept: Path) -> None:
    files = _memories(home)
    assert {path.parent.name for path in files if path.is_relative_to(kept)} == {"kept", names.SUSPENDED}
    for path in files:
        seen = path.stat()
        allowed = 0o440 if path.name == names.MEMORY and os.geteuid() == 0 else 0o400
        assert stat.S_IMODE(seen.st_mode) == allowed, path
        assert seen.st_uid == os.geteuid(), path
        for folder in (path.parent, *path.parent.parents):
            if folder == home:  # whoever made that chose its mode; all in it is Insula's
                break
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


@pytest.mark.root
def test_no_machine_has_the_group_of_a_memory(home: Path, kept: Path) -> None:
    """Each state has a group of its own: those who load it get it in addition, for as long as they run."""
    machines = {jail_ids(uuid).machine for uuid in machine_uuids(Home(home))}
    groups = {path.stat().st_gid for path in _memories(home) if path.name == names.MEMORY}
    assert groups
    assert 0 not in groups
    assert not groups & machines


@pytest.mark.root
def test_another_machines_user_cannot_read_it(home: Path, kept: Path) -> None:
    """Even with the file handed to it through folders that it could walk, which it cannot."""
    memory = kept / names.SNAPSHOTS / "kept" / names.MEMORY
    stranger = jail_ids("0b5f5a55-3a7e-4a55-9b8e-0f1c8f1a2b3c").machine
    as_stranger = ["setpriv", f"--reuid={stranger}", f"--regid={stranger}", "--clear-groups", "--"]
    assert run([*as_stranger, "cat", str(memory)], check=False).status != 0
    with memory.open("rb") as file:
        path = f"/proc/self/fd/{file.fileno()}"  # skips the folders: what is left is the file's own mode
        done = run([*as_stranger, "sh", "-c", f"head -c 1 {path}"], pass_fds=[file.fileno()], check=False)
    assert done.status != 0 or not done.stdout
    assert b"ermission denied" in done.stderr
    owner = memory.stat().st_gid
    as_owner = ["setpriv", f"--reuid={stranger}", f"--regid={stranger}", f"--groups={owner}", "--"]
    with memory.open("rb") as file:
        path = f"/proc/self/fd/{file.fileno()}"
        assert run([*as_owner, "sh", "-c", f"head -c 1 {path}"], pass_fds=[file.fileno()]).status == 0
