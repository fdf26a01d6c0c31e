"""A machine with a VGA card: what is in the card's own memory is part of a snapshot, however that is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

import insula
from insula.engines.qemu import changed, migrate
from insula.store import names
from tests.faults.rewound import left_over

pytestmark = [pytest.mark.guest, pytest.mark.limit(180)]

_CARD = "/sys/bus/pci/devices/0000:00:01.0"
# The card's memory is its first region, 16 MiB: two places in it, its last bytes, and the 32 KiB in which text is shown.
_BASE = f"base=$(head -n 1 {_CARD}/resource | cut -d ' ' -f 1)"
_SPOTS = (0x3A1238, 0x7A1238, 0xFFFFF8)
_TEXT = 0xB8000


@pytest.fixture
def screen(home: Path, tiny: str, name: str, request: pytest.FixtureRequest) -> insula.Machine:
    """A running machine with a screen; booted if the test's parameter says so, else gone on from the image's warm state."""
    cold = getattr(request, "param", False)
    return insula.connect(home).run(tiny, name=name, memory="128M", network="none", display="vga", cold=cold)


def _draw(machine: insula.Machine, number: int) -> str:
    """Draw something; what `_look` must then see."""
    writes = [f"devmem $((base + {spot})) 64 {number + spot:#x}" for spot in _SPOTS]
    text = f"dd if=/dev/urandom of=/dev/mem bs=4096 count=8 seek={_TEXT // 4096}"
    machine.exec("sh", "-e", "-c", "; ".join([_BASE, *writes, text]), check=True)
    return _look(machine)


def _look(machine: insula.Machine) -> str:
    reads = [f"devmem $((base + {spot})) 64" for spot in _SPOTS]
    text = f"dd if=/dev/mem of=/run/text bs=4096 count=8 skip={_TEXT // 4096}; md5sum /run/text"
    return machine.exec("sh", "-e", "-c", "; ".join([_BASE, *reads, text]), check=True).stdout


def _rewind(home: Path, machine: insula.Machine, method: str) -> None:
    first = _draw(machine, 0x1111_2222_3333_0000)
    snapshot = machine.snapshot("first")
    assert snapshot.status.method == method
    second = _draw(machine, 0x4444_5555_6666_0000)
    assert second.split()[:3] == [f"0x{0x4444_5555_6666_0000 + spot:016X}" for spot in _SPOTS]
    assert len({*first.split(), *second.split()}) == 9  # all others differ; the file is called the same
    with snapshot.fork()[0] as child:
        assert _look(child) == first
    snapshot.restore(keep=False)
    assert _look(machine) == first
    assert left_over(home) == []


def test_the_screen_comes_back_with_the_changed_pages(
    home: Path, screen: insula.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed, "_PAUSE", 60.0)  # however busy this computer is
    assert screen.show().display == "vga"
    _rewind(home, screen, "changed-pages")


@pytest.mark.full
@pytest.mark.parametrize("screen", [True], indirect=True)
def test_the_screen_comes_back_with_all_of_the_memory(home: Path, screen: insula.Machine) -> None:
    _rewind(home, screen, "mapped-ram")
    first = _look(screen)
    screen.suspend().start()
    assert _look(screen) == first


@pytest.mark.full
@pytest.mark.parametrize("screen", [True], indirect=True)
def test_the_screen_comes_back_in_the_stream(home: Path, screen: insula.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As boards are saved that were not proved otherwise: none is, here."""
    monkeypatch.setattr(migrate, "_PROVED", "no board")
    _rewind(home, screen, "stream")
    assert not (home / "machines" / screen.name / names.SNAPSHOTS / "first" / names.MEMORY).exists()


@pytest.mark.full
def test_a_blank_page_hides_what_was_there(home: Path, screen: insula.Machine) -> None:
    """A snapshot's blank screen comes back over one that shows something, to the second generation."""
    blank = _look(screen)
    snapshot = screen.snapshot("blank")
    with screen.fork()[0] as child:
        drawn = _draw(child, 0x1234_0000)
        with child.fork()[0] as grandchild:
            assert _look(grandchild) == drawn
    _draw(screen, 0x5678_0000)
    snapshot.restore()
    assert _look(screen) == blank
