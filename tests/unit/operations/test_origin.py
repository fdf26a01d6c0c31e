"""One state for many forks: put together where that helps and can be, and gone afterwards."""

from __future__ import annotations

import errno
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from insula.engines.fake.engine import FakeEngine
from insula.errors import HostLacks
from insula.host.cpu import host_cpu
from insula.operations.context import Context
from insula.operations.origin import Origin, check_loadable, shared_by
from insula.store import names
from insula.store.machines import BoardRecord
from insula.store.names import Home
from insula.store.snapshots import read_snapshot
from tests.unit.store.test_corpus_snapshots import VERSIONS


class _Composes(FakeEngine):
    """As a real one does it, or finds no room on the way."""

    full = False

    def choose_board(self, arch: str, former: BoardRecord | None = None) -> BoardRecord:
        """One that shows its guests the host's own CPU."""
        return msgspec.structs.replace(super().choose_board(arch, former), cpu="host", accelerator="kvm")

    def compose_for(self, count: int, origin: Path, target: Path) -> bool:
        del count
        (target / names.MEMORY).write_bytes((origin / names.MEMORY).read_bytes() + b" and changes")
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        (target / names.STATE).write_bytes(b"the rest")
        return True


@pytest.fixture
def context(tmp_path: Path) -> Context:
    home = Home(tmp_path / "home")
    home.prepare()
    return Context(home, _Composes(home))


@pytest.fixture
def origin(context: Context) -> Origin:
    """A snapshot of changed pages."""
    machine = context.home.machine("web")
    place = machine / names.SNAPSHOTS / "one"
    place.mkdir(parents=True)
    (place / names.MEMORY).write_bytes(b"memory")
    shutil.copy(VERSIONS / "v3" / names.SNAPSHOT_RECORD, place)
    return Origin(machine, place, read_snapshot(place))


def _there(origin: Origin) -> list[str]:
    return [path.name for path in (origin.machine / names.SNAPSHOTS).iterdir()]


def test_many_load_what_was_put_together(context: Context, origin: Origin) -> None:
    with shared_by(context, origin, 3) as found:
        assert (found.machine, found.folder, found.record) == (origin.machine, origin.folder, origin.record)
        assert found.shared is not None
        assert found.shared.name.startswith(names.NEW_PREFIX), "else nobody would sweep it"
        assert (found.shared / names.MEMORY).read_bytes() == b"memory and changes"
        modes = {stat.S_IMODE(path.stat().st_mode) for path in found.shared.iterdir()}
        assert modes <= {0o440, 0o400}
    assert _there(origin) == ["one"]


def test_without_room_each_has_its_own(context: Context, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Composes, "full", True)
    with shared_by(context, origin, 3) as found:
        assert found == origin
    assert _there(origin) == ["one"]


def test_one_alone_has_its_own(context: Context, origin: Origin) -> None:
    with shared_by(context, origin, 1) as found:
        assert found == origin
        assert _there(origin) == ["one"]


def test_a_guest_that_sees_the_hosts_cpu_goes_on_where_that_is_the_same(context: Context, origin: Origin) -> None:
    board = context.engine.choose_board("amd64")
    for known in (host_cpu(), ""):  # what an older Insula took does not say
        check_loadable(context, "web@one", msgspec.structs.replace(origin.record, board=board, host_cpu=known))
    elsewhere = msgspec.structs.replace(origin.record, board=board, host_cpu="Another CPU (0123456789ab)")
    with pytest.raises(HostLacks, match="its CPU is Another CPU") as refused:
        check_loadable(context, "web@one", elsewhere)
    assert host_cpu() in refused.value.message
    assert refused.value.code == "snapshot_not_loadable"
