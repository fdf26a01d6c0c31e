"""What was and what comes: console logs and events, to their end or as they happen."""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from insula.errors import HostLacks, MachineEnded
from insula.guest import keeper
from insula.guest.link import open_link
from insula.model.requests import ReadEvents, ReadLogs
from insula.model.streams import Streams
from insula.operations.context import Context
from insula.operations.observe import is_alive
from insula.operations.operation import Operation
from insula.store import names
from insula.store.events import read_events
from insula.store.machines import machine_folder, machine_names

_CHUNK = 65536
# Of the words in capitals, which are the keeper's and QEMU's own, those that tell what no verb has told in ours.
_NEWS = frozenset("AGENT AGENT_REFUSED BLOCK_IO_ERROR HOLDER_DIED MEMORY_FAILURE MONITOR_GARBAGE RESET WATCHDOG".split())
_CLOCK_STEP = 60_000_000_000  # ns a time may lie ahead of ours because the clock was set back


def logs(context: Context, request: ReadLogs, operation: Operation, streams: Streams) -> None:
    """Write what the guest printed on its console: all that was kept, or with ``follow`` the last 64 KiB and what comes.

    The bytes are the guest's own: whoever shows them on a terminal cleans them first.
    """
    del operation
    folder = machine_folder(context.home, request.name)
    if request.follow and is_alive(folder):
        with contextlib.suppress(MachineEnded), open_link(folder / names.RUN) as link:
            keeper.console(link, streams, follow=True, keys=False)
            return
    for name in (names.CONSOLE_OLD, names.CONSOLE):
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb") as stream:
            while untrusted_data := stream.read(_CHUNK):
                write_all(streams, untrusted_data)


def write_all(streams: Streams, data: bytes) -> None:
    """Write ``data`` to the caller's standard output, waiting until there is room. Raises HostLacks (``no_space``): it is a file
    on a full disk, which need not be the one that our own files are on."""
    import select

    view = memoryview(data)
    while view:
        try:
            taken = streams.stdout.write(view)
        except OSError as cause:
            if cause.errno != errno.ENOSPC:
                raise
            raise HostLacks("no space left where the output goes", code="no_space") from cause
        view = view[taken:]
        descriptor = streams.stdout.fileno()
        if not taken and descriptor is not None:
            select.select([], [descriptor], [])


def events(context: Context, request: ReadEvents, operation: Operation, streams: Streams) -> None:
    """Write events as lines of JSON, each with its machine's name, oldest first; with ``follow`` then those that come, too.

    One for each thing that happened; with ``whole`` all that were noted, by verbs, keeper and QEMU alike.
    """
    del operation
    if request.name:
        machine_folder(context.home, request.name)
    log = _EventLog(context, request.name, whole=request.whole)
    for line in log.news():
        write_all(streams, line)
    if request.follow:
        _follow(context, log, lambda line: write_all(streams, line))


def _follow(context: Context, log: _EventLog, write: Callable[[bytes], None]) -> None:
    from insula.host.watch import Watch

    context.home.prepare()
    with Watch() as watch:
        watch.add(context.home.machines)
        while True:
            for folder in log.folders():
                watch.add(folder)
            for line in log.news():
                write(line)
            if log.is_over():
                return
            watch.wait_change()


class _EventLog:
    """Events of one machine or of all, each given out once."""

    def __init__(self, context: Context, name: str, *, whole: bool = False) -> None:
        self._home = context.home
        self._name = name
        self._whole = whole
        self._seen: dict[str, tuple[set[str], set[str]]] = {}

    def folders(self) -> list[Path]:
        if self._name:
            return [self._home.machine(self._name)]
        return [self._home.machine(name) for name in machine_names(self._home)]

    def is_over(self) -> bool:
        """Whether nothing more can come: the one machine meant was deleted, or has another name now."""
        return bool(self._name) and not self._home.machine(self._name).is_dir()

    def news(self) -> Iterator[bytes]:
        """Events since the last call. What is new is told by the lines themselves: a jailed keeper writes what times it likes.

        Two looks are remembered, because one may miss lines that are being moved to the second file just then.
        """
        fresh: list[tuple[int, dict[str, object]]] = []
        latest = time.time_ns() + _CLOCK_STEP
        for folder in self.folders():
            there: set[str] = set()
            last, before = self._seen.get(folder.name, (set(), set()))
            for untrusted in read_events(folder):
                untrusted_time = untrusted.get("time")
                if not isinstance(untrusted_time, int) or not (self._whole or _is_news(untrusted.get("event"))):
                    continue
                line = json.dumps(untrusted, ensure_ascii=True)
                if not (line in there or line in last or line in before):
                    at = max(0, min(untrusted_time, latest))
                    fresh.append((at, {"machine": folder.name, **untrusted, "time": at}))
                there.add(line)
            self._seen[folder.name] = (there, last)
        for _, event in sorted(fresh, key=lambda pair: pair[0]):
            yield json.dumps(event, ensure_ascii=True).encode() + b"\n"


def _is_news(untrusted_event: object) -> bool:
    return not (isinstance(untrusted_event, str) and untrusted_event.isupper()) or untrusted_event in _NEWS
