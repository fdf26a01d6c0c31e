"""Events that are followed: told as they come, and over when the machine is."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from insula.client.streams import CallbackStreams, MemoryStreams, PipeStreams
from insula.errors import HostLacks
from insula.model.requests import ReadEvents
from insula.operations.context import Context
from insula.operations.follow import events, write_all
from insula.operations.operation import Operation
from insula.store.events import append_event
from insula.store.names import Home


def test_following_one_machine_ends_when_it_is_deleted(tmp_path: Path) -> None:
    context = Context(Home(tmp_path / "home"))
    folder = context.home.machine("web")
    folder.mkdir(parents=True)
    append_event(folder, "created")
    told: list[str] = []
    came = threading.Event()

    def take(data: bytes) -> None:
        told.extend(json.loads(line)["event"] for line in data.splitlines())
        came.set()

    def follow() -> None:
        with CallbackStreams(stdout=take) as streams:
            events(context, ReadEvents(name="web", follow=True), Operation("events"), streams)

    follower = threading.Thread(target=follow)
    follower.start()
    assert came.wait(10)
    append_event(folder, "started")
    folder.rename(context.home.machines / ".gone-1")
    follower.join(10)
    assert not follower.is_alive()
    assert told in (["created"], ["created", "started"])


def test_a_full_disk_behind_the_output_is_not_taken_for_ours() -> None:
    """`insula top --once > /a/full/disk`; so are guard, events and stats."""
    with (
        open("/dev/full", "wb") as full,
        PipeStreams(stdin=None, stdout=full.fileno(), stderr=None, signals=()) as streams,
        pytest.raises(HostLacks, match="no space left where the output goes") as error,
    ):
        write_all(streams, b"x")
    assert (error.value.code, error.value.hint) == ("no_space", None)


_LIFE = (
    "created", "STARTED", "NETDEV_STREAM_CONNECTED", "started", "VSERPORT_CHANGE", "AGENT", "STOP", "paused", "RESUME", "resumed",
    "BLOCK_IO_ERROR", "RESET", "stopping", "SHUTDOWN", "ENDED", "ended",
)  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_each_thing_that_happened_is_told_once_unless_all_is_asked_for(tmp_path: Path, whole: bool) -> None:
    context = Context(Home(tmp_path / "home"))
    folder = context.home.machine("web")
    folder.mkdir(parents=True)
    for event in _LIFE:
        append_event(folder, event)
    streams = MemoryStreams()
    events(context, ReadEvents(name="web", whole=whole), Operation("events"), streams)
    told = [json.loads(line)["event"] for line in streams.output.splitlines()]
    once = ["created", "started", "AGENT", "paused", "resumed", "BLOCK_IO_ERROR", "RESET", "stopping", "ended"]
    assert told == (list(_LIFE) if whole else once)
