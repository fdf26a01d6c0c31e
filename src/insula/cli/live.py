"""`top`: what machines use, again and again, on a terminal or as lines."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from insula.cli.common import client
from insula.cli.render import table_lines
from insula.cli.usage import HEADS, NAMES, cells, read_usage
from insula.errors import Interrupted
from insula.model import resource_requests
from insula.model.units import format_size

if TYPE_CHECKING:
    from insula.model.usage import MachineUsage, Usage
    from insula.operations.operation import Operation

_REMEMBERED: Final = 24  # looks in a sparkline
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"

# By what machines are sorted, each with its key; what there is most of comes first, names by the alphabet.
_SORTS: Final[dict[str, tuple[str, Callable[[MachineUsage], float]]]] = {
    "cpu": ("c", lambda machine: machine.cpu.used),
    "wait": ("w", lambda machine: machine.cpu.waiting),
    "memory": ("m", lambda machine: machine.memory.own),
    "disk": ("d", lambda machine: machine.disk.read_rate + machine.disk.write_rate if machine.disk else 0.0),
    "net": ("n", lambda machine: machine.network.receive_rate + machine.network.send_rate),
    "name": ("a", lambda _machine: 0.0),
}


@click.command(epilog="Example: insula top --sort wait")
@click.option("--sort", type=click.Choice(list(_SORTS)), default="cpu", show_default=True, help="What comes first.")
@click.option("--interval", type=float, default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many looks.")
@click.option("--once", is_flag=True, help="End after one look, as -n 1.")
@NAMES
def top(machines: tuple[str, ...], sort: str, interval: float, count: int | None, once: bool) -> None:
    """Watch what machines use. Keys: c w m d n a sort by CPU, wait, memory, disk, net, name; q ends it, as Ctrl-C does.

    Without a terminal, or with --once or -n, plain lines are printed.
    """
    from insula.client.streams import CallbackStreams
    from insula.operations.dispatch import begin

    looks = 1 if once else count or 0
    request = resource_requests.WatchUsage(names=machines, interval=interval, count=looks)
    operation = begin(request)
    view = View(sort)
    with contextlib.ExitStack() as stack:
        show: Callable[[], None] = _print_plain(view)
        if not looks and sys.stdin.isatty() and sys.stdout.isatty():
            show = stack.enter_context(_screen(view, operation))

        def take(data: bytes) -> None:
            if view.take(data):
                show()

        with CallbackStreams(stdout=take) as streams, contextlib.suppress(Interrupted, KeyboardInterrupt):
            client().do(request, streams, operation=operation)


class View:
    """What is shown, of the last look and those before it. ``draw`` may be called by any thread."""

    def __init__(self, sort: str, bars: str = "") -> None:
        self.sort = sort
        self.usage: Usage | None = None
        self._bars = bars or (_BARS if "utf" in (sys.stdout.encoding or "").lower() else _PLAIN_BARS)
        self._pressed: dict[str, float] = {}
        self._pressure: dict[str, float] = {}
        self._past: dict[str, deque[float]] = {}
        self._rest = b""

    def take(self, data: bytes) -> bool:
        """Output of the request, in whatever pieces; whether there is something new to show."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._learn(read_usage(line))
        return bool(lines)

    def _learn(self, usage: Usage) -> None:
        past = {machine.name: self._past.get(machine.name) or deque(maxlen=_REMEMBERED) for machine in usage.machines}
        for machine in usage.machines:
            past[machine.name].append(machine.cpu.used)
        self._past = past
        if self._pressed and usage.seconds:
            grown = {name: total - self._pressed.get(name, total) for name, total in usage.host.pressure.items()}
            self._pressure = {name: min(1.0, max(0.0, each) / usage.seconds) for name, each in grown.items()}
        self._pressed = usage.host.pressure
        self.usage = usage

    def draw(self, columns: int = 0, rows: int = 0, *, history: bool = False) -> list[str]:
        """Lines; bounded where a bound is given. With ``history`` a sparkline of the CPUs used."""
        if (usage := self.usage) is None:
            return ["looking..."]
        sort = self.sort
        machines = sorted(usage.machines, key=lambda machine: (-_SORTS[sort][1](machine), machine.name))
        table = [[*cells(machine), *([self._spark(machine.name)] if history else [])] for machine in machines]
        lines = [self._head(usage), *table_lines([*HEADS, *(["CPU BEFORE"] if history else [])], table)]
        bounded = lines[:rows] if rows else lines
        return [line[:columns] for line in bounded] if columns else bounded

    def _head(self, usage: Usage) -> str:
        words = [f"{len(usage.machines)} running", f"{usage.host.cpus} CPUs", f"{format_size(usage.host.memory_available)} free"]
        words += [f"{name} pressure {share:.0%}" for name, share in self._pressure.items()]
        return " · ".join([*words, f"by {self.sort}"])

    def _spark(self, name: str) -> str:
        past = list(self._past.get(name, ()))
        most = max([1.0, *past])
        return "".join(self._bars[min(len(self._bars) - 1, int(each / most * len(self._bars)))] for each in past)


def _print_plain(view: View) -> Callable[[], None]:
    def show() -> None:
        for line in view.draw():
            click.echo(line)
        sys.stdout.flush()

    return show


@contextlib.contextmanager
def _screen(view: View, operation: Operation) -> Iterator[Callable[[], None]]:
    """The terminal while `top` has it; what is yielded has it drawn anew. One thread draws and reads keys, so that nothing is
    drawn by two at once, and a key need not wait for the next look."""
    import termios
    import tty

    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    former = termios.tcgetattr(0)

    def wake(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(outlet, b".")

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    handlers = {signal.SIGWINCH: wake, signal.SIGTERM: end, signal.SIGHUP: end}
    restored: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hand = threading.Thread(target=_work, args=(view, operation, inlet))
    try:
        tty.setcbreak(0)
        hand.start()
        yield wake
    finally:
        os.set_blocking(outlet, True)
        os.write(outlet, b"q")
        if hand.ident is not None:
            hand.join()
        termios.tcsetattr(0, termios.TCSADRAIN, former)
        for number, handler in restored.items():
            signal.signal(number, handler)
        os.close(inlet)
        os.close(outlet)


def _work(view: View, operation: Operation, inlet: int) -> None:
    keys = {key.encode(): sort for sort, (key, _) in _SORTS.items()}
    _write(_ENTER)
    try:
        while True:
            columns, rows = os.get_terminal_size(1)
            _write("\x1b[H" + "\x1b[K\r\n".join(view.draw(columns, rows, history=True)) + "\x1b[K\x1b[J")
            ready = select.select([inlet, 0], [], [])[0]
            if inlet in ready and b"q" in os.read(inlet, 4096):
                return
            if 0 in ready:
                pressed = os.read(0, 64)
                if not pressed or b"q" in pressed:  # nobody is there any more, or has had enough
                    operation.cancel()
                    return
                view.sort = next((keys[key] for key in _each(pressed) if key in keys), view.sort)
    except OSError:  # the terminal is gone
        operation.cancel()
    finally:
        with contextlib.suppress(OSError):
            _write(_LEAVE)


def _each(pressed: bytes) -> Sequence[bytes]:
    return [pressed[place : place + 1] for place in range(len(pressed))]


def _write(text: str) -> None:
    data = memoryview(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))
    while data:
        data = data[os.write(1, data) :]
