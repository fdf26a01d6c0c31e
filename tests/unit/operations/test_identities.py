"""New identities: no two machines share the ids their processes run as, however few there are, and made at once or not."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from insula.isolation.uids import JailIds, ids_from_map
from insula.operations.identities import choose, own_identity
from insula.store import names
from insula.store.machines import machine_uuids, new_machine_folder, publish_machine, read_machine, write_machine
from insula.store.names import Home
from tests.unit.store.test_machines import _record

FEW = "0 100000 96\n"  # a container so small that there are ids for 16 machines


def few(machine_uuid: str) -> JailIds:
    return ids_from_map(machine_uuid, FEW)


def test_ids_that_are_taken_are_not_taken_again() -> None:
    others: list[str] = []
    for _ in range(16):
        others.append(choose(others, few).uuid)
    assert len({few(other).machine for other in others}) == 16


def test_when_all_are_taken_they_are_shared() -> None:
    others = [str(uuid.UUID(int=place)) for place in range(16)]
    assert few(choose(others, few).uuid).machine is not None


def test_without_own_ids_nobody_is_asked() -> None:
    def never() -> str:
        raise AssertionError("the others were looked at")

    choose(iter(never, ""), lambda machine_uuid: JailIds(None, None, None))


def test_machines_made_at_once_get_different_ones(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()

    def make(number: int) -> None:
        with new_machine_folder(home) as staged, own_identity(home, few) as identity:
            write_machine(staged, msgspec.structs.replace(_record(), id=identity.uuid, identity=identity))
            publish_machine(home, staged, f"m{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(14)))
    assert len({few(found).machine for found in machine_uuids(home)}) == 14


def test_a_damaged_record_hinders_nobody(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with new_machine_folder(home) as staged:
        write_machine(staged, _record())
        publish_machine(home, staged, "good")
    for name, content in (("bad", b"{"), ("worse", b'{"identity": 1}')):
        home.machine(name).mkdir()
        (home.machine(name) / names.RECORD).write_bytes(content)
    home.machine("empty").mkdir()
    assert list(machine_uuids(home)) == [read_machine(home.machine("good")).identity.uuid]
