"""QEMU's monitor: typed calls over ``qemu.qmp``. The only module that uses asyncio, because that library does; callers block.

Each call opens the monitor for verbs, which serves one client at a time: the caller holds the machine's lock.
What comes back is from a process that a guest may have taken over, hence ``untrusted``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from qemu.qmp import ExecuteError, QMPClient, QMPError

from insula.errors import InsulaError, MachineEnded
from insula.host.sockets import connect_unix

T = TypeVar("T")

_PATIENCE: Final = 10.0  # seconds for an answer; QEMU gives it in milliseconds unless the host is very busy


class RunState(msgspec.Struct, frozen=True):
    """``query-status``: ``status`` is one of QEMU's RunState words."""

    running: bool
    status: str


def query_status(socket_path: Path) -> RunState:
    """Whether the guest's CPUs run. Raises MachineEnded, InsulaError (``monitor_failed``)."""
    return _call(socket_path, _status)


def pause(socket_path: Path) -> None:
    """Stop the CPUs and return when they stand. Does nothing when they do already."""

    async def go(client: QMPClient) -> None:
        if not (await _status(client)).running:
            return
        with client.listener("STOP") as events:
            await client.execute("stop")
            # The reply means "asked"; the event means "stopped".
            await events.get()

    _call(socket_path, go)


def resume(socket_path: Path) -> None:
    """Let the CPUs run. Does nothing when they do already."""

    async def go(client: QMPClient) -> None:
        if not (await _status(client)).running:
            await client.execute("cont")

    _call(socket_path, go)


def power_button(socket_path: Path) -> None:
    """Press the power button; returns at once."""

    async def go(client: QMPClient) -> None:
        await client.execute("system_powerdown")

    _call(socket_path, go)


def quit_qemu(socket_path: Path) -> None:
    """End QEMU in order: its disks are flushed, the guest is not asked."""

    async def go(client: QMPClient) -> None:
        await client.execute("quit")

    _call(socket_path, go)


def execute(socket_path: Path, command: str, arguments: dict[str, object] | None = None) -> object:
    """Any other command; returns what QEMU returned, as JSON values."""

    async def go(client: QMPClient) -> object:
        return await client.execute(command, arguments)

    return _call(socket_path, go)


async def _status(client: QMPClient) -> RunState:
    untrusted_answer = await client.execute("query-status")
    return msgspec.convert(untrusted_answer, RunState)


def _call(socket_path: Path, work: Callable[[QMPClient], Awaitable[T]]) -> T:
    async def go() -> T:
        async with _connected(socket_path) as client, asyncio.timeout(_PATIENCE):
            return await work(client)

    try:
        return asyncio.run(go())
    except (FileNotFoundError, ConnectionError, EOFError) as cause:
        raise MachineEnded("the machine is not running", code="machine_ended") from cause
    except ExecuteError as cause:
        raise InsulaError(f"QEMU refused: {cause}", code="monitor_failed") from cause
    except (TimeoutError, BlockingIOError) as cause:
        raise InsulaError(f"QEMU did not answer within {_PATIENCE:g} s", code="monitor_timeout") from cause
    except (QMPError, msgspec.ValidationError) as cause:
        if _hung_up(cause):
            raise MachineEnded("the machine ended", code="machine_ended") from cause
        raise InsulaError(f"QEMU's monitor answered nonsense: {cause}", code="monitor_failed") from cause


def _hung_up(cause: BaseException | None) -> bool:
    """Whether the connection's end is at the bottom of it: the library wraps that in errors of its own."""
    while cause is not None:
        if isinstance(cause, (EOFError, ConnectionError)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@asynccontextmanager
async def _connected(socket_path: Path) -> AsyncIterator[QMPClient]:
    client = QMPClient("insula")
    connection = connect_unix(socket_path)
    connection.setblocking(False)
    async with asyncio.timeout(_PATIENCE):
        await client.connect(connection)
    try:
        yield client
    finally:
        await client.disconnect()
