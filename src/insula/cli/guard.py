"""`guard`: the noisy-neighbour guard, told in words."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from insula.cli.common import client, json_option
from insula.cli.usage import NAMES
from insula.errors import Interrupted
from insula.model import resource_requests
from insula.model.units import format_size

if TYPE_CHECKING:
    from insula.model.guarding import Disturbance, GuardLook, GuardStep
    from insula.operations.operation import Operation

_OF: Final = {"cpu": "of the CPUs", "disk": "of the disk", "network": "of the network"}


@click.command(epilog="Examples: insula guard  |  insula guard --dry-run --once")
@click.option("--dry-run", is_flag=True, help="Only say who suffers, who causes it, and what would be done.")
@click.option("--once", is_flag=True, help="End as soon as it can be judged, after three looks; what is held down stays so.")
@click.option("--interval", type=float, default=1.0, show_default=True, help="Seconds between two looks.")
@json_option
@NAMES
def guard(machines: tuple[str, ...], dry_run: bool, once: bool, interval: float, as_json: bool) -> None:
    """Keep machines from making others suffer: who does is held down step by step, and let go when the pressure is gone.

    Ends by Ctrl-C, and takes back then what it holds. NAMEs: look at these alone.
    """
    from insula.client.streams import CallbackStreams
    from insula.operations.dispatch import begin

    request = resource_requests.GuardMachines(names=machines, interval=interval, once=once, dry_run=dry_run)
    operation = begin(request)
    teller = _Teller()
    rest = b""

    def take(data: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if as_json:
                click.echo(line)
            else:
                teller.tell(_read(line))

    with _ends_in_order(operation), CallbackStreams(stdout=take) as streams, contextlib.suppress(Interrupted):
        client().do(request, streams, operation=operation)
        if not as_json:
            teller.conclude()


@contextlib.contextmanager
def _ends_in_order(operation: Operation) -> Iterator[None]:
    """Signals cancel it between two steps, so that all is taken back, whoever asks for its end."""
    former = {
        number: signal.signal(number, lambda *_: operation.cancel()) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _read(line: bytes) -> GuardLook:
    import msgspec

    from insula.model.guarding import GuardLook

    return msgspec.json.decode(line, type=GuardLook)


class _Teller:
    """Says what is new."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._is_silent = True
        self._machines = 0

    def tell(self, look: GuardLook) -> None:
        self._machines = look.machines
        self._is_silent &= not look.steps and not any(each.proven for each in look.disturbances)
        proven = [each for each in look.disturbances if each.proven]
        for each in proven:
            if (each.cause, each.resource) not in self._said:
                click.echo(told(each))
        self._said = {(each.cause, each.resource) for each in look.disturbances if each in proven or self._was_said(each)}
        for step in look.steps:
            click.echo(done(step, dry_run=look.dry_run))

    def conclude(self) -> None:
        """It ended by itself: that there was nothing to say is said."""
        if self._is_silent:
            click.echo(f"nobody makes others suffer: {self._machines} machine{'s'[: self._machines != 1]} looked at")

    def _was_said(self, each: Disturbance) -> bool:
        return (each.cause, each.resource) in self._said


def told(each: Disturbance) -> str:
    """Who suffers, and who causes it."""
    used, fair = amount(each.resource, each.used), amount(each.resource, each.fair)
    short = "goes" if len(each.sufferers) == 1 else "go"
    return f"{each.cause} takes {used} {_OF[each.resource]}, fair is {fair}: {', '.join(each.sufferers)} {short} short"


def done(step: GuardStep, *, dry_run: bool) -> str:
    """What was done, or would be, or could not be."""
    cap = amount(step.resource, step.cap)
    what = {"hold": f"held down to {cap}", "ease": f"eased to {cap}", "release": "let go"}[step.action]
    words = f"{step.machine}: {'would be ' if dry_run else ''}{what} {_OF[step.resource]}"
    return f"{words}; it could not be: {step.problem}" if step.problem else words


def amount(resource: str, value: float) -> str:
    """``0.5``, or a size a second."""
    return f"{value:.2f}" if resource == "cpu" else f"{format_size(round(value))}/s"
