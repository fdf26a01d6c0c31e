"""A network's name server that comes when another has not quite gone: an address is had once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from insula.host import links
from insula.host.holder import start_holder
from insula.host.watch import Watch
from insula.networks import names

pytestmark = pytest.mark.root

_CONFIG = "port=53\nlisten-address=10.9.9.1\nbind-interfaces\nno-resolv\nno-hosts\n"


def _wait_said(folder: Path, words: str) -> None:
    log = names.log_file(folder)
    with Watch() as watch:
        watch.add(log.parent)
        while words not in log.read_text():
            assert watch.wait_change(timeout=30), f"{words!r} was never said"


def test_one_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    former, later = tmp_path / "former", tmp_path / "later"
    with start_holder(tmp_path / "holder.sock", own_user=False)[0] as holder:
        try:
            batch = ["link add name b1 type bridge", "address add 10.9.9.1/24 dev b1", "link set b1 up", "link set lo up"]
            links.apply("ip", batch, holder.spaces)
            for folder in (former, later):
                names.write_lone(folder, _CONFIG)
            names.start(holder, former, "former", running=False)
            _wait_said(former, "started, version")
            names.log_file(later).touch()
            starting = threading.Thread(target=names.start_anew, args=(holder, later, "later"), kwargs={"running": False})
            starting.start()
            _wait_said(later, "in use")
            holder.stop(names.child_name("former"))
            starting.join(30)
            assert "started, version" in names.log_file(later).read_text()
            assert names.child_name("later") in holder.children()
        finally:
            holder.quit()
