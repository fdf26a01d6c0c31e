"""Many QEMUs asked at once: one that is silent, floods or lies keeps nobody from hearing the others."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from insula.engines.qemu.readers import disk_counts
from insula.host.sockets import listen_unix
from insula.resources.metrics import DiskCounts

_GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
_STATS = {
    "rd_operations": 3, "wr_operations": 4, "rd_bytes": 5, "wr_bytes": 6, "rd_total_time_ns": 7, "wr_total_time_ns": 8,
    "flush_operations": 9, "flush_total_time_ns": 10, "account_failed": True,
}  # fmt: skip
_ROWS = [
    {"qdev": "/machine/peripheral/disk0/virtio-backend", "device": "", "stats": _STATS},
    {"qdev": "/machine/peripheral/disk1/virtio-backend", "device": "", "stats": _STATS},
    {"device": "floppy", "stats": _STATS},
]
_TRUTH = DiskCounts(6, 8, 10, 12, 14, 16, 18, 20)
Talk = Callable[[socket.socket], None]


def _answers(rows: Any) -> Talk:
    """As QEMU does: a greeting, then each command in its turn."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(_GREETING)
        for line in connection.makefile("rb"):
            command = json.loads(line)
            result = {} if command["execute"] == "qmp_capabilities" else rows
            connection.sendall(json.dumps({"return": result, "id": command["id"]}).encode() + b"\r\n")

    return talk


def _floods(connection: socket.socket) -> None:
    connection.sendall(_GREETING)
    while True:
        connection.sendall(b'{"event": "STOP", "timestamp": {}}\r\n' * 100)


def _rants(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[[str, Talk | None], Path]]:
    """Have somebody serve a socket of that name, one at a time; None: nobody is ever accepted."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(name: str, talk: Talk | None) -> Path:
        path = tmp_path / name
        listener = listen_unix(path)
        listeners.append(listener)

        def work() -> None:
            with contextlib.suppress(OSError):
                while talk is not None:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        talk(connection)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return path

    yield serve
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def test_all_that_the_guest_sees_is_summed_up(qemu: Any) -> None:
    path = qemu("good", _answers(_ROWS))
    assert disk_counts({"a": path}, 30.0) == {"a": _TRUTH}
    assert disk_counts({"a": path}, 30.0) == {"a": _TRUTH}, "the first let go of it"


def test_who_does_not_answer_keeps_nobody_from_being_heard(qemu: Any, tmp_path: Path) -> None:
    paths = {
        "mute": qemu("mute", None), "flood": qemu("flood", _floods), "rant": qemu("rant", _rants),
        "empty": qemu("empty", _answers([])), "good": qemu("good", _answers(_ROWS)), "gone": tmp_path / "gone",
    }  # fmt: skip
    expected = {"empty": DiskCounts(), "good": _TRUTH}
    while (found := disk_counts(paths, 1.0)) != expected:  # they too have but so much time, and this process floods itself
        assert found.items() <= expected.items()


@pytest.mark.parametrize(
    "rows",
    [None, {}, 7, [7], [{"qdev": "d"}], [{"qdev": "d", "stats": {**_STATS, "rd_bytes": -1}}], [{"qdev": 7, "stats": _STATS}],
     [{"qdev": "d", "stats": {**_STATS, "rd_bytes": 1 << 63}}], [{"qdev": "d", "stats": {**_STATS, "rd_bytes": 1.5}}]],
)  # fmt: skip
def test_what_cannot_be_is_no_answer(qemu: Any, rows: Any) -> None:
    assert disk_counts({"a": qemu("odd", _answers(rows))}, 30.0) == {}


def test_an_answer_in_pieces(qemu: Any) -> None:
    def talk(connection: socket.socket) -> None:
        answer = _GREETING + b'{"return": {}, "id": 0}\r\n' + json.dumps({"return": _ROWS, "id": 1}).encode() + b"\r\n"
        for place in range(0, len(answer), 97):
            connection.sendall(answer[place : place + 97])
        connection.recv(65536)

    assert disk_counts({"a": qemu("slow", talk)}, 30.0) == {"a": _TRUTH}
