"""Every bar: its name on the command line, what is promised, and who measures it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from bench import addressed, boot, copying, firewall, forks, heartbeat, jail, libvirt, quick, residents, rewind, traffic
from bench.pairs import Estimate, Pairs, Statistic, difference, estimate, ratio, speed
from bench.report import Row, shown
from bench.traffic_host import Seconds
from bench.world import World

_MS: Final = 1000.0
_MIB: Final = 1 / 2**20
_LONGEST_SILENCE: Final = 0.040  # seconds


@dataclass(frozen=True)
class Bar:
    """``n``: how many pairs are measured unless said otherwise. ``measure`` gives a row, or several, or none where this computer
    lacks what it takes."""

    name: str
    what: str
    limit: float
    n: int
    measure: Measure


Measure = Callable[[Bar, World, int], list[Row]]


def _milliseconds(value: float) -> str:
    return f"{value * _MS:.{0 if value >= 0.01 else 1}f} ms"


def _row(bar: Bar, promise: str, measured: str, pairs: Pairs, met: bool) -> Row:
    ours, theirs = (_milliseconds(median(side)) for side in (pairs.ours, pairs.theirs))
    return Row(bar.name, bar.what, promise, measured, ours, theirs, len(pairs.ours), met)


def _nothing(bar: Bar) -> list[Row]:
    print(f"{bar.name} cannot be measured here: what it is compared with does not run", file=sys.stderr)
    return []


def _at_most(run: Callable[[World, int], Pairs | None], statistic: Statistic = ratio) -> Measure:
    """A ratio of times that must not exceed the limit."""

    def measure(bar: Bar, world: World, n: int) -> list[Row]:
        pairs = run(world, n)
        if pairs is None:
            return _nothing(bar)
        found = estimate(pairs, statistic)
        return [_row(bar, f"≤ {bar.limit:g} ×", shown(found), pairs, found.value <= bar.limit)]

    return measure


def _above(run: Callable[[World, int], Pairs]) -> Measure:
    """Seconds above the other side that must not exceed the limit."""

    def measure(bar: Bar, world: World, n: int) -> list[Row]:
        pairs = run(world, n)
        found = estimate(pairs, difference)
        promise, measured = f"≤ {bar.limit * _MS:g} ms more", shown(found, " ms", 0, _MS)
        return [_row(bar, promise, measured, pairs, found.value <= bar.limit)]

    return measure


def _as_fast(run: Callable[[World, int], Pairs]) -> Measure:
    """A ratio of speeds that must reach the limit."""

    def measure(bar: Bar, world: World, n: int) -> list[Row]:
        pairs = run(world, n)
        found = estimate(pairs, speed)
        return [_row(bar, f"≥ {bar.limit:g} × as fast", shown(found), pairs, found.value >= bar.limit)]

    return measure


def _resident(bar: Bar, world: World, n: int) -> list[Row]:
    """Bytes, the largest of ``n`` machines."""
    found = [residents.look(world) for _ in range(n)]
    most = max(each.keeper for each in found)
    others = sorted({name for each in found for name in each.others})
    kib = f"{most / 1024:.0f} KiB"
    measured = f"{kib}, and {', '.join(others)}" if others else kib
    promise = f"< {bar.limit / 2**20:g} MiB, nothing else"
    return [Row(bar.name, bar.what, promise, measured, kib, "-", n, most < bar.limit and not others)]


def _pause(bar: Bar, world: World, n: int) -> list[Row]:
    """Seconds, the median of ``n`` snapshots."""
    found = rewind.pause(world, n)
    middle, longest = _milliseconds(median(found)), _milliseconds(max(found))
    promise, met = f"≤ {bar.limit * _MS:g} ms", median(found) <= bar.limit
    return [Row(bar.name, bar.what, promise, f"{middle}, at most {longest}", middle, "-", n, met)]


def _silences(bar: Bar, world: World, n: int) -> list[Row]:
    """A row for each size, number of CPUs and kind of machine: a ratio that must not exceed the limit, and seconds too."""
    rows = []
    for size, cpus in heartbeat.SHAPES:
        found = heartbeat.silences(world, size, cpus, n)
        if not found:
            print(f"{bar.name} of {size} cannot be measured here: too little memory", file=sys.stderr)
        rows += [_silence(bar, f"{size}-{cpus}-{kind}", pairs) for kind, pairs in found.items()]
    return rows


def _silences_beside_libvirt(bar: Bar, world: World, n: int) -> list[Row]:
    """A row for each size."""
    rows = []
    for size in heartbeat.SIZES_BESIDE_LIBVIRT:
        pairs = heartbeat.beside_libvirt(world, size, n)
        if pairs is None:
            print(f"{bar.name} of {size} cannot be measured here: too little memory", file=sys.stderr)
        else:
            rows.append(_silence(bar, f"{size}-1-booted", pairs, "libvirt"))
    return rows


def _silence(bar: Bar, which: str, pairs: Pairs, other: str = "by hand") -> Row:
    found, middle = estimate(pairs, ratio), median(pairs.ours)
    measured = f"{shown(found)}; at most {_milliseconds(max(pairs.ours))}, {other} {_milliseconds(max(pairs.theirs))}"
    ours, theirs = _milliseconds(middle), _milliseconds(median(pairs.theirs))
    promise = f"≤ {bar.limit:g} × and ≤ {_LONGEST_SILENCE * _MS:g} ms"
    met = found.value <= bar.limit and middle <= _LONGEST_SILENCE
    size, cpus, kind = which.split("-")
    what = f"{bar.what}: {size}, {cpus} CPU{'s' if cpus > '1' else ''}, {kind}"
    return Row(f"{bar.name}-{which}", what, promise, measured, ours, theirs, len(pairs.ours), met)


def _beside_libvirt(measure: Measure) -> Measure:
    """Where libvirt runs a machine; the rows tell which libvirt."""

    def where_it_runs(bar: Bar, world: World, n: int) -> list[Row]:
        if not libvirt.runs(world):
            return _nothing(bar)
        return [replace(row, what=f"{row.what} (libvirt {libvirt.version()})") for row in measure(bar, world, n)]

    return where_it_runs


def _running(bar: Bar, world: World, n: int) -> list[Row]:
    """A row for each size of machine."""
    rows = []
    for size in forks.SIZES:
        pairs = forks.of_running(world, size, n)
        found = estimate(pairs, ratio)
        row = _row(bar, f"≤ {bar.limit:g} ×", shown(found), pairs, found.value <= bar.limit)
        rows.append(replace(row, name=f"{bar.name}-{size}", what=f"{bar.what}: {size}"))
    return rows


def _many(bar: Bar, world: World, n: int) -> list[Row]:
    """Seconds, and bytes."""
    found = forks.many(world, n)
    memory: Estimate = estimate(found.memory, ratio)
    ours, theirs = (f"{median(side) * _MIB:.0f} MiB" for side in (found.memory.ours, found.memory.theirs))
    what, limit = "memory (PSS) of each of the twenty, all its processes / by hand", forks.MEMORY_LIMIT
    met = memory.value <= limit
    return [
        *_at_most(lambda _world, _n: found.seconds)(bar, world, n),
        Row(f"{bar.name}-memory", what, f"≤ {limit:g} ×", shown(memory), ours, theirs, n, met),
    ]


def _addressed(run: Callable[[World, int], dict[str, Pairs]]) -> Measure:
    """A row for each kind of network."""

    def measure(bar: Bar, world: World, n: int) -> list[Row]:
        rows = []
        for kind, pairs in run(world, n).items():
            found = estimate(pairs, ratio)
            row = _row(bar, f"≤ {bar.limit:g} ×", shown(found), pairs, found.value <= bar.limit)
            rows.append(replace(row, name=f"{bar.name}-{kind}", what=f"{bar.what}: {kind}"))
        return rows

    return measure


def _traffic(run: Callable[[World, int], Seconds | None]) -> Measure:
    """A row for each way the bytes go, and each side that ours is compared with: ratios of speeds."""

    def measure(bar: Bar, world: World, n: int) -> list[Row]:
        seconds = run(world, n)
        if seconds is None:
            print(f"{bar.name} cannot be measured here: it takes root to make a host with an outside", file=sys.stderr)
            return []
        return [
            _moved(bar, way, side, Pairs(tuple(sides["ours"]), tuple(theirs)))
            for way, sides in seconds.items()
            for side, theirs in sides.items()
            if side != "ours"
        ]

    return measure


def _moved(bar: Bar, way: str, side: str, pairs: Pairs) -> Row:
    found, limit = estimate(pairs, speed), traffic.LIMITS.get(side, bar.limit)
    ours, theirs = (f"{traffic.SIZE * 8 / 1e6 / median(times):.0f} Mbit/s" for times in (pairs.ours, pairs.theirs))
    name = f"{bar.name}-{way}" + (f"-{side}" if side in traffic.LIMITS else "")
    what = f"{bar.what}: {way.replace('-', ', ')} / {traffic.SIDES[side]}"
    return Row(name, what, f"≥ {limit:g} × as fast", shown(found), ours, theirs, len(pairs.ours), found.value >= limit)


_ALL = (
    Bar("noop", "`insula --version` / a Python process that imports click", 1.2, 60, _at_most(quick.noop)),
    Bar("list", "`insula list` of 1000 machines, above `insula --version`", 0.150, 30, _above(quick.list_thousand)),
    Bar(
        "exec", "`insula exec NAME -- true` / raw frames sent by a process that imports click", 1.2, 60, _at_most(quick.exec_true)
    ),
    Bar("keeper", "memory of the keeper (PSS) beside a running machine, and who else stays", 2.0**20, 2, _resident),
    Bar("jail", "QEMU from its start to its monitor's greeting, in the jail / without one", 1.15, 40, _at_most(jail.start)),
    Bar("copy-in", "100 MB copied into a guest / `dd` from a bare port", 0.9, 20, _as_fast(copying.into)),
    Bar("copy-out", "100 MB copied out of a guest / `dd` to a bare port", 0.9, 20, _as_fast(copying.out_of)),
    Bar("boot-tiny", "`insula run --cold tiny -- CMD` until CMD answers / QEMU by hand", 1.05, 12, _at_most(boot.tiny)),
    Bar("run-warm", "`insula run debian -- true` of a warm state / the same with `--cold`", 15.0, 3, _as_fast(rewind.run_warm)),
    Bar(
        "run-podman",
        "`insula run debian -- true` / `podman run --rm` of a Debian image, `true`",
        1.0,
        10,
        _at_most(rewind.run_beside_podman),
    ),
    Bar(
        "run-podman-spare",
        "`insula run debian -- true` with a spare / `podman run --rm` of a Debian image, `true`",
        1.0,
        10,
        _at_most(rewind.run_beside_podman_with_spare),
    ),
    Bar(
        "fork", "fork of a snapshot until its first command ended / the same state loaded by hand", 1.3, 20, _at_most(rewind.fork)
    ),
    Bar("fork-running", "fork of a running machine until its first command ended / by hand", 1.3, 12, _running),
    Bar("fork-spare", "fork of a snapshot with a spare / without", 0.5, 12, _at_most(rewind.fork_spare)),
    Bar("fork-20", "20 forks of an idle Debian until all have run a command / by hand", 1.25, 3, _many),
    Bar("restore", "restore in place until it answers / the same state loaded by hand", 1.2, 20, _at_most(rewind.restore)),
    Bar(
        "restore-libvirt",
        "restore in place until it answers / `virsh restore`",
        1.0,
        12,
        _beside_libvirt(_at_most(rewind.restore_beside_libvirt)),
    ),
    Bar("snapshot-pause", "how long a guest dirtying its memory stands still for a snapshot", 0.040, 20, _pause),
    Bar("heartbeat", "longest silence of a guest's 1 ms heartbeat during a snapshot / by hand", 1.3, 4, _silences),
    Bar(
        "pause-libvirt",
        "longest silence of a guest's 1 ms heartbeat during a snapshot / libvirt's live snapshot",
        1.0,
        8,
        _beside_libvirt(_silences_beside_libvirt),
    ),
    Bar("snapshot-work", "what a guest gets done while a snapshot is taken / undisturbed", 0.8, 8, _as_fast(heartbeat.work)),
    Bar("rules-200", "firewall rules of 200 machines, from what is wanted / the same, as text", 1.5, 12, _at_most(firewall.load)),
    Bar(
        "run-address", "`insula run tiny` until it has its address / without a network card", 1.2, 12, _addressed(addressed.warm)
    ),
    Bar("run-address-cold", "the same with `--cold`", 1.2, 4, _addressed(addressed.cold)),
    Bar("traffic", "TCP, as root", 0.95, 40, _traffic(traffic.of_root)),
    Bar("traffic-user", "TCP, as an ordinary user", 0.95, 40, _traffic(traffic.of_user)),
    Bar("boot-debian", "`insula run --cold debian -- CMD` until CMD answers / QEMU by hand", 1.05, 4, _at_most(boot.debian)),
)

BARS: Final = {bar.name: bar for bar in _ALL}
