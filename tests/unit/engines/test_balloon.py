"""A guest is asked for memory by its balloon: waited for while it gives some, and not for ever."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from insula.engines.qemu import hotplug
from insula.host.sockets import listen_unix
from insula.model.units import MIB

_GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
_CHANGE = b'{"event": "BALLOON_CHANGE", "data": {}}\r\n'


@contextmanager
def _guest(path: Path, has: Iterable[int]) -> Iterator[list[int]]:
    """A QEMU whose guest has one of ``has`` after the other each time that is asked, and the last of them for ever. What it
    was asked to do with."""
    left, wanted = [*has], []

    def answer(command: Any) -> object:
        if command["execute"] == "balloon":
            wanted.append(command["arguments"]["value"])
        return {"actual": left.pop(0) if len(left) > 1 else left[0]} if command["execute"] == "query-balloon" else {}

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(_GREETING)
            for line in lines:
                command = json.loads(line)
                said = json.dumps({"return": answer(command), "id": command["id"]}).encode() + b"\r\n"
                connection.sendall(said + (_CHANGE if len(left) > 1 else b""))

    with listen_unix(path) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield wanted
        thread.join()


def test_one_that_gives_something_is_waited_for(tmp_path: Path) -> None:
    with _guest(tmp_path / "qmp", range(512 * MIB, 127 * MIB, -64 * MIB)) as wanted:
        assert hotplug.balloon(tmp_path / "qmp", 128 * MIB) == 128 * MIB
    assert wanted == [128 * MIB]


def test_one_that_has_nothing_to_give_is_not_and_is_asked_for_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug, "_SLOWEST", 0.01)
    with _guest(tmp_path / "qmp", [512 * MIB, 511 * MIB]) as wanted:
        assert hotplug.balloon(tmp_path / "qmp", 128 * MIB) == 511 * MIB
    assert wanted == [128 * MIB, 511 * MIB]
