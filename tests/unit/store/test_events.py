"""The file of events: bounded, believed in nothing, and whole while a keeper and verbs write it at once."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from insula.model.requests import ReadEvents
from insula.operations.context import Context
from insula.operations.follow import _EventLog
from insula.store import names
from insula.store.events import MOST_BYTES, append_event, read_events
from insula.store.names import Home


def _lines(count: int) -> bytes:
    return b"".join(json.dumps({"time": n, "event": "E", "data": {"pad": "x" * 100}}).encode() + b"\n" for n in range(count))


def test_a_full_file_moves_to_the_second_and_nothing_is_lost(tmp_path: Path) -> None:
    count = MOST_BYTES // 140
    (tmp_path / names.EVENTS).write_bytes(_lines(count))
    padding = "y" * MOST_BYTES
    append_event(tmp_path, "last", padding=padding)
    assert (tmp_path / names.EVENTS_OLD).read_bytes() == _lines(count)
    assert [event["event"] for event in read_events(tmp_path)] == ["E"] * count + ["last"]


def test_while_there_is_a_keeper_the_file_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / names.RUN).mkdir()
    (tmp_path / names.EVENTS).write_bytes(_lines(MOST_BYTES // 140))
    append_event(tmp_path, "one", padding="y" * (MOST_BYTES // 2))
    assert not (tmp_path / names.EVENTS_OLD).exists()
    assert list(read_events(tmp_path))[-1]["event"] == "one"
    append_event(tmp_path, "two", padding="y" * MOST_BYTES)  # though not without bound
    assert (tmp_path / names.EVENTS_OLD).exists()
    assert [event["event"] for event in read_events(tmp_path)][-2:] == ["one", "two"]


def test_what_was_made_too_long_is_read_from_its_end(tmp_path: Path) -> None:
    with open(tmp_path / names.EVENTS, "wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n")
    (tmp_path / names.RUN).mkdir()
    append_event(tmp_path, "stopping")
    assert [event["event"] for event in read_events(tmp_path)][-1] == "stopping"


def test_a_keeper_that_holds_the_lock_stops_no_verb(tmp_path: Path) -> None:
    with open(tmp_path / names.EVENTS, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        append_event(tmp_path, "stopping")
    assert [event["event"] for event in read_events(tmp_path)] == ["stopping"]


def _told(log: _EventLog) -> list[str]:
    return [json.loads(line)["event"] for line in log.news()]


def test_no_time_hides_what_comes_later(tmp_path: Path) -> None:
    context = Context(Home(tmp_path))
    folder = context.home.machine("web")
    folder.mkdir(parents=True)
    untrusted = [{"time": time, "event": f"t{index}"} for index, time in enumerate((2**63, -5, 10**30))]
    (folder / names.EVENTS).write_text("".join(json.dumps(one) + "\n" for one in untrusted))
    log = _EventLog(context, ReadEvents(name="web").name)
    first = [json.loads(line) for line in log.news()]
    assert sorted(event["event"] for event in first) == ["t0", "t1", "t2"]
    assert all(0 <= event["time"] < 2**62 for event in first)
    append_event(folder, "stopping")
    assert _told(log) == ["stopping"]
    assert _told(log) == []


def test_an_event_is_told_once_also_when_it_moves(tmp_path: Path) -> None:
    context = Context(Home(tmp_path))
    folder = context.home.machine("web")
    folder.mkdir(parents=True)
    append_event(folder, "started")
    log = _EventLog(context, "")
    assert _told(log) == ["started"]
    content = (folder / names.EVENTS).read_bytes()
    (folder / names.EVENTS).write_bytes(b"")
    assert _told(log) == []
    (folder / names.EVENTS_OLD).write_bytes(content)
    assert _told(log) == []
    (folder / names.EVENTS).write_bytes(content)  # copied, and not yet emptied
    assert _told(log) == []
