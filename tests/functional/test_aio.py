"""The SDK for asyncio on a real guest: the same nouns, side by side on one event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from insula import aio
from insula.errors import NotFound


def test_an_unknown_machine_is_told_as_in_blocking_code(tmp_path: Path) -> None:
    async def story() -> None:
        connection = aio.connect(tmp_path / "home")
        assert await connection.list() == []
        with pytest.raises(NotFound, match="no machine named 'web'"):
            await connection.get("web")

    asyncio.run(story())


@pytest.mark.limit(120)
def test_commands_run_side_by_side_and_the_machine_goes_at_the_end(home: Path, tiny: str) -> None:
    async def story() -> str:
        connection = aio.connect(home)
        async with await connection.run(tiny, memory="128M", network="none") as machine:
            # Each waits until the other is there too: one after the other they would wait for ever.
            meet = "mkdir -p /tmp/met; : > /tmp/met/$0; until [ -e /tmp/met/$1 ]; do :; done; echo $0"
            done = await asyncio.wait_for(
                asyncio.gather(machine.exec("sh", "-c", meet, "a", "b"), machine.exec("sh", "-c", meet, "b", "a")), 60
            )
            assert [result.stdout for result in done] == ["a\n", "b\n"]
            assert (await machine.show()).state == "running"
            await machine.pause()
            await machine.resume()
            return machine.name

    name = asyncio.run(story())
    assert not (home / "machines" / name).exists()


@pytest.mark.limit(120)
def test_a_machine_forks_and_goes_back(home: Path, tiny: str) -> None:
    async def story() -> list[str]:
        connection = aio.connect(home)
        async with await connection.run(tiny, memory="128M", network="none") as machine:
            await machine.exec("sh", "-c", "echo good > /root/note", check=True)
            snapshot = await machine.snapshot(description="good")
            await machine.exec("sh", "-c", "echo bad > /root/note", check=True)
            forks = [*await machine.fork(), *await snapshot.fork()]
            notes = await asyncio.gather(*(fork.exec("cat", "/root/note", check=True) for fork in forks))
            assert [note.stdout for note in notes] == ["bad\n", "good\n"]
            await snapshot.restore(keep=False)
            assert (await machine.exec("cat", "/root/note")).stdout == "good\n"
            assert [each.name for each in await machine.snapshots()] == [snapshot.name]
            assert (await snapshot.status()).current
            for fork in forks:
                await fork.delete(force=True)
            return [machine.name, *(fork.name for fork in forks)]

    for name in asyncio.run(story()):
        assert not (home / "machines" / name).exists()
