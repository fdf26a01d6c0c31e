from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from insula.isolation import roots
from insula.isolation.roots import KEEPER_INSIDE, RootPlan, jail_root
from insula.store.locks import folder_lock


@pytest.fixture
def plan(tmp_path: Path) -> RootPlan:
    data = tmp_path / "share"
    (data / "deep").mkdir(parents=True)
    (data / "bios.bin").write_bytes(b"bios")
    (data / "deep" / "rom.bin").write_bytes(b"rom")
    (data / "link.bin").symlink_to("bios.bin")
    keeper = tmp_path / "keeper"
    keeper.write_bytes(b"keeper")
    keeper.chmod(0o755)
    return RootPlan((Path("/bin/sh"),), (data,), keeper)


def test_a_root_holds_programs_their_libraries_and_data(plan: RootPlan, tmp_path: Path) -> None:
    root = jail_root(plan, tmp_path / "jails")
    assert (root / "bin/sh").read_bytes() == Path("/bin/sh").read_bytes()
    assert list(root.rglob("libc.so.6"))
    assert list(root.rglob("ld-linux*"))
    data = root / plan.folders[0].relative_to("/")
    assert (data / "deep/rom.bin").read_bytes() == b"rom"
    assert not (data / "link.bin").is_symlink()
    assert (data / "link.bin").read_bytes() == b"bios"
    assert os.access(root / KEEPER_INSIDE.lstrip("/"), os.X_OK)
    assert (root / "dev/null").read_bytes() == b""
    # Walked by the ids of jails, which own nothing.
    assert all(path.stat().st_mode & 0o005 == 0o005 for path in (root, *root.rglob("*")) if path.is_dir())


def test_it_is_made_once_per_what_it_is_made_of(plan: RootPlan, tmp_path: Path) -> None:
    folder = tmp_path / "jails"
    first = jail_root(plan, folder)
    marker = first.stat().st_ino
    assert jail_root(plan, folder) == first
    assert first.stat().st_ino == marker
    plan.keeper.write_bytes(b"another keeper")
    assert jail_root(plan, folder) != first


def test_a_new_one_sends_away_what_nobody_used_for_a_month(plan: RootPlan, tmp_path: Path) -> None:
    folder = tmp_path / "jails"
    first = jail_root(plan, folder)
    os.utime(first, (0, 0))
    assert jail_root(plan, folder) == first
    plan.keeper.write_bytes(b"another keeper")
    second = jail_root(plan, folder)
    assert sorted(folder.iterdir()) == sorted([first, second])  # it was used today
    os.utime(first, (0, 0))
    plan.keeper.write_bytes(b"a third keeper")
    assert sorted(folder.iterdir()) == sorted([first, second])
    third = jail_root(plan, folder)
    assert sorted(folder.iterdir()) == sorted([second, third])


def test_one_that_could_not_be_made_leaves_nothing(plan: RootPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jails"
    monkeypatch.setattr(roots, "_EMPTY_FILES", ("dev/null", "bin/sh/impossible"))
    with pytest.raises(OSError):  # noqa: PT011 - a folder where a file is: NotADirectoryError or FileExistsError
        jail_root(plan, folder)
    assert list(folder.iterdir()) == []


def test_two_at_once_agree(plan: RootPlan, tmp_path: Path) -> None:
    folder = tmp_path / "jails"
    root = jail_root(plan, folder)
    roots._build(plan, root)  # as a second command that began before the first had finished
    assert [path.name for path in folder.iterdir()] == [root.name]


def test_many_at_once_make_it_once(plan: RootPlan, tmp_path: Path) -> None:
    folder = tmp_path / "jails"
    with ThreadPoolExecutor(8) as pool:
        made = {(root, root.stat().st_ino) for root in pool.map(lambda _: jail_root(plan, folder), range(8))}
    assert len(made) == 1
    assert [path.name for path in folder.iterdir()] == [next(iter(made))[0].name]


def test_what_a_dead_command_left_unfinished_goes_with_the_next_one_made(plan: RootPlan, tmp_path: Path) -> None:
    folder = tmp_path / "jails"
    (folder / ".building-0123" / "usr").mkdir(parents=True)
    (folder / ".building-0123" / "usr" / "half").write_bytes(b"made")
    root = jail_root(plan, folder)
    assert list(folder.iterdir()) == [root]


def test_what_somebody_is_making_stays_until_he_is_done(plan: RootPlan, tmp_path: Path) -> None:
    folder = tmp_path / "jails"
    building = folder / ".building-0123"
    building.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with folder_lock(folder):
            second = pool.submit(jail_root, plan, folder)
            wait([second], timeout=0.1)  # it may do now what it must not
            assert not second.done()
            assert building.is_dir()
            building.rmdir()
        assert second.result(30).is_dir()
