"""How a guest bears a snapshot: the longest silence of its heart, and how much it gets done meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import insula
from bench import beats, libvirt
from bench.beats import Beats
from bench.hand import AgentClient
from bench.hand_fork import HandGuest, state_of
from bench.pairs import Pairs
from bench.world import World, scratch
from insula.host.memory import available_bytes
from insula.host.sockets import connect_unix
from insula.model.units import parse_size
from insula.store import names

SHAPES = tuple((size, cpus) for size in ("512M", "2G", "8G") for cpus in (1, 2))
KINDS = ("booted", "fork", "grandchild")
SIZES_BESIDE_LIBVIRT = ("512M", "2G")
_SETTLE = 1.0  # seconds until a guest that stood still, or began a program, does what it does
_AFTERWARDS = 0.1  # seconds for signs that are under way
_UNDISTURBED = 2.0  # seconds of work that a snapshot is compared with

Span = tuple[float, float]


def silences(world: World, size: str, cpus: int, n: int) -> dict[str, Pairs]:
    """Seconds of the longest silence in each of ``n`` snapshots, ours and by hand in turns, of each kind of machine.

    Empty when this computer has too little memory for two machines of ``size``.
    """
    found: dict[str, Pairs] = {}
    if available_bytes() < 2.5 * parse_size(size):
        return found
    with (
        world.machine("tiny", "--memory", size, "--cpus", str(cpus), "--network", "none") as name,
        contextlib.ExitStack() as stack,
    ):
        machine = insula.connect(world.home.root).get(name)
        machine.put(beats.program(), beats.INSIDE)
        with scratch() as place, HandGuest(place, world.home.machine(name)) as hand:
            _put_program(hand)
            found[KINDS[0]] = _in_turns(world, machine, hand, n)
        for kind in KINDS[1:]:
            machine.snapshot("bench")
            folder = world.home.machine(machine.name)
            (child,) = machine.fork(name=f"{name}-{kind}")
            stack.callback(child.delete, force=True)
            machine.pause()
            with scratch() as place, HandGuest(place, folder, state_of(folder, "bench")) as hand:
                found[kind] = _in_turns(world, child, hand, n)
            machine = child.resume()
    return found


def beside_libvirt(world: World, size: str, n: int) -> Pairs | None:
    """The same of a machine of ours that was booted and of one in libvirt's hands; None with too little memory."""
    if available_bytes() < 2.5 * parse_size(size):
        return None
    options = ("--memory", size, "--network", "none")
    with world.machine("tiny", *options) as name, scratch() as place, libvirt.Virsh(place) as virsh:
        machine = insula.connect(world.home.root).get(name)
        machine.put(beats.program(), beats.INSIDE)
        with libvirt.Domain(virsh, "create", libvirt.prepare(place, world.image("tiny"), world.board(), size)) as domain:
            _put_program(domain)
            return _in_turns(world, machine, domain, n)


def work(world: World, n: int) -> Pairs:
    """Seconds a piece of work takes while a snapshot is taken, and undisturbed, right before it, ``n`` times."""
    with world.machine("tiny", "--memory", "2G", "--network", "none") as name:
        machine = insula.connect(world.home.root).get(name)
        machine.put(beats.program(), beats.INSIDE)
        with Beats(_client(world, machine), "work") as signs:
            spans = []
            for _ in range(n):
                time.sleep(_SETTLE + _UNDISTURBED)
                spans.append(_span(machine.snapshot))
            time.sleep(_AFTERWARDS)
            stamps = signs.end()
    during = [1 / stamps.rate(begin, end) for begin, end in spans]
    before = [1 / stamps.rate(begin - _UNDISTURBED, begin) for begin, _ in spans]
    return Pairs(tuple(during), tuple(before))


def _in_turns(world: World, ours: insula.Machine, hand: HandGuest | libvirt.Domain, n: int) -> Pairs:
    """One stands still while a snapshot of the other is taken: there are few CPUs."""
    with Beats(_client(world, ours), "silence") as our_signs, Beats(hand, "silence") as hand_signs:
        ours.pause()
        hand.stand(still=True)
        our_spans: list[Span] = []
        hand_spans: list[Span] = []

        def of_ours() -> None:
            ours.resume()
            our_spans.append(_settled(ours.snapshot))
            ours.pause()

        def of_hand() -> None:
            hand.stand(still=False)
            hand_spans.append(_settled(hand.snapshot))
            hand.stand(still=True)

        for number in range(n):
            for turn in (of_ours, of_hand) if number % 2 == 0 else (of_hand, of_ours):
                turn()
        our_stamps, hand_stamps = our_signs.end(), hand_signs.end()
    return Pairs(tuple(our_stamps.silence(*span) for span in our_spans), tuple(hand_stamps.silence(*span) for span in hand_spans))


def _put_program(guest: AgentClient) -> None:
    put = f"cat >{beats.INSIDE} && chmod 755 {beats.INSIDE}"
    guest.wait("sh", "-c", put, given=beats.program().read_bytes())


def _settled(work: Callable[[], object]) -> Span:
    time.sleep(_SETTLE)
    span = _span(work)
    time.sleep(_AFTERWARDS)
    return span


def _span(work: Callable[[], object]) -> Span:
    """When ``work`` began and ended."""
    begin = time.monotonic()
    work()
    return begin, time.monotonic()


def _client(world: World, machine: insula.Machine) -> AgentClient:
    """The guest's agent, by way of the keeper."""
    return AgentClient(connect_unix(Path(world.home.machine(machine.name), names.RUN, names.KEEPER_SOCKET)))
