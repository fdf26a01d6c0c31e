"""The whole way: many links, a real keeper, a real agent."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.client.streams import MemoryStreams
from insula.errors import GuestError, MachineEnded
from insula.guest import agent as calls
from insula.guest import keeper
from insula.guest.copying import copy_in, copy_out
from insula.guest.execute import ExitStatus, execute
from insula.guest.link import open_link
from insula.host.native import native_path
from insula.model.command import Command
from tests.framework.trees import seen
from tests.unit.native.rig import Rig


@pytest.fixture
def machine(agent_program: str) -> Iterator[Rig]:
    """A machine's run folder: its keeper serves a real agent. The rest of the machine is played."""
    folder = Path(tempfile.mkdtemp(prefix="k"))
    rig = Rig(os.fspath(native_path("insula-keeper")), folder).greet()
    port = rig.agent.port.fileno()
    agent = subprocess.Popen([agent_program, "--port", f"fd:{port}"], pass_fds=[port], stdin=subprocess.DEVNULL)
    try:
        rig.event("VSERPORT_CHANGE", open=True, id="agent0")
        with open_link(folder) as link:
            keeper.wait_agent(link, 10)
        yield rig
    finally:
        agent.terminate()
        agent.wait()
        rig.close()
        shutil.rmtree(folder)


def test_many_programs_side_by_side_each_on_a_link_of_its_own(machine: Rig) -> None:
    results: dict[int, tuple[ExitStatus, bytes]] = {}

    def run(number: int) -> None:
        streams = MemoryStreams(b"%d " % number * 100_000)
        with open_link(machine.folder) as link:
            status = execute(link, Command(["sh", "-c", f"cat; exit {number}"], user=str(os.getuid())), streams)
        results[number] = (status, streams.output)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: (ExitStatus(number), b"%d " % number * 100_000) for number in range(8)}


def test_copies_pass_whole(machine: Rig, tree: Path, tmp_path: Path) -> None:
    (tree / "larger").write_bytes(os.urandom(5_000_001))
    with open_link(machine.folder) as link:
        copy_in(link, [tree], f"{tmp_path}/guest")
        copy_out(link, [f"{tmp_path}/guest"], tmp_path / "back")
    assert seen(tmp_path / "back") == seen(tree)


def test_agent_calls_and_status(machine: Rig) -> None:
    with open_link(machine.folder) as link:
        calls.ping(link, b"data")
        status = keeper.status(link)
        assert (status.state, status.agent is not None) == ("running", True)
        with pytest.raises(GuestError, match="no such file in the guest: /no"):
            calls.stat(link, "/no")


def test_a_machine_that_ends_is_told_with_its_reason(machine: Rig) -> None:
    with open_link(machine.folder) as link:
        channel = link.open("exec", argv=["sleep", "60"], user=str(os.getuid()))
        calls.ping(link)  # requests of a link are served in order: the program runs now
        machine.event("SHUTDOWN", guest=True, reason="guest-panic")
        machine.end()
        with pytest.raises(MachineEnded) as caught:
            channel.finish(10)
    assert (caught.value.code, "panic" in str(caught.value)) == ("machine_ended", True)
    with pytest.raises(MachineEnded) as caught:
        open_link(machine.folder)
    assert caught.value.code == "not_running"
