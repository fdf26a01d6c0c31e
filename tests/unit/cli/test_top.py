"""What `top` draws: sorted, bounded, with a history of those that are there."""

from __future__ import annotations

import msgspec

from insula.cli.live import View
from insula.model.usage import CpuUsage, DiskTraffic, HostUsage, MachineUsage, MemoryUsage, NetworkTraffic, Usage


def machine(name: str, cpu: float = 0.0, wait: float = 0.0, own: int = 0, read: float = 0.0, sent: float = 0.0) -> MachineUsage:
    return MachineUsage(
        name, "running", CpuUsage(1.0, 1.0, cpu, wait), MemoryUsage(1 << 29, own, own),
        DiskTraffic(0, 0, 0, 0, 0.0, 0.0, read_rate=read), NetworkTraffic(0, 0, 0, 0, 0, send_rate=sent), {}, [],
    )  # fmt: skip


ALL = [machine("a", cpu=0.1, sent=9e6), machine("b", wait=2.0, read=1e6), machine("c", cpu=1.5, own=1 << 30), machine("d")]


def line(machines: list[MachineUsage], pressure: float = 0.0) -> bytes:
    return msgspec.json.encode(Usage(HostUsage(4, 1 << 30, {"cpu": pressure}), machines, 1.0)) + b"\n"


def names(view: View) -> str:
    return "".join(row.split()[0] for row in view.draw()[2:])


def test_what_there_is_most_of_comes_first() -> None:
    view = View("cpu", "12345678")
    assert view.take(line(ALL))
    orders = {"cpu": "cabd", "wait": "bacd", "memory": "cabd", "disk": "bacd", "net": "abcd", "name": "abcd"}
    for sort, order in orders.items():
        view.sort = sort
        assert names(view) == order, sort


def test_lines_come_in_any_pieces() -> None:
    view = View("cpu", "12345678")
    data = line(ALL) + line(ALL[:1])
    assert [view.take(data[place : place + 50]) for place in range(0, len(data), 50)].count(True) == 2
    assert names(view) == "a"


def test_the_past_of_a_machine_goes_with_it() -> None:
    view = View("name", "12345678")
    for used in (0.0, 0.5, 1.0):
        view.take(line([machine("a", cpu=used)]))
    assert view.draw(history=True)[2].endswith("158")
    view.take(line([machine("b")]))
    view.take(line([machine("a", cpu=2.0)]))
    assert view.draw(history=True)[2].endswith("  8")


def test_it_is_no_larger_than_the_terminal() -> None:
    view = View("cpu", "12345678")
    view.take(line(ALL, 1.0))
    view.take(line(ALL, 1.25))
    assert "cpu pressure 25%" in view.draw()[0]
    for columns, rows in ((10, 3), (1, 1), (200, 50)):
        lines = view.draw(columns, rows, history=True)
        assert len(lines) <= rows
        assert all(len(text) <= columns for text in lines)


def test_before_the_first_look_it_says_so() -> None:
    assert View("cpu", "12345678").draw(80, 24) == ["looking..."]
