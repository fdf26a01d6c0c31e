"""How much of the host a machine may have: its shares of what others want too, and its limits; as values and as text.

A share is a weight among machines and costs nobody anything while the host has time to spare; a limit holds even then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from insula.errors import UsageError
from insula.model.names import nearest
from insula.model.network import Rates, format_rate, parse_rate
from insula.model.text import clean
from insula.model.units import GIB, KIB, MIB, parse_size

DEFAULT_SHARES: Final = 1024
DEFAULT_WEIGHT: Final = 100
THOUSAND: Final = 1000  # of a CPU

_LEAST_SHARES, _MOST_SHARES = 2, 262_144
_LEAST_WEIGHT, _MOST_WEIGHT = 1, 1000
_LEAST_CPU: Final = 10  # a hundredth: the kernel takes no quota below 1 ms in its period of 100 ms
_MOST_CPU: Final = 4096 * THOUSAND
_LEAST_IOPS, _MOST_IOPS = 10, 10**9
_LEAST_DISK_RATE, _MOST_DISK_RATE = 64 * KIB, 1024 * GIB
_LONGEST_BURST: Final = 3600  # seconds
_MOST_PINNED: Final = 4096

_NONE: Final = ("0", "none", "unlimited")
_CPUS = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,3}))?")
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_UNITS: Final = (("T", 1024 * GIB), ("G", GIB), ("M", MIB), ("K", KIB))


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine is held to. 0, and an empty ``pin``, is without limit.

    ``pin``: the host's CPUs it may run on, by number; ``isolate``: those it runs on while no other machine does. ``cpu_shares``:
    its weight when machines want more CPU than there is. ``cpu_limit`` and ``cpu_burst``: host CPUs in thousandths; the burst is
    what it may use beyond the limit in a tenth of a second, out of what it left unused before. ``io_weight``: as ``cpu_shares``,
    of the host's disks. ``disk_rate`` (bytes a second) and ``disk_iops`` (requests a second) hold for each of its disks; their
    ``burst`` is how much it may have for ``burst_time`` seconds out of what it left unused. ``net``: what each of its network
    cards may send and receive, beside that card's own limits.
    """

    pin: tuple[int, ...] = ()
    isolate: tuple[int, ...] = ()
    cpu_shares: int = DEFAULT_SHARES
    cpu_limit: int = 0
    cpu_burst: int = 0
    io_weight: int = DEFAULT_WEIGHT
    disk_iops: int = 0
    disk_iops_burst: int = 0
    disk_rate: int = 0
    disk_rate_burst: int = 0
    burst_time: int = 1
    net: Rates = Rates()

    @property
    def cores(self) -> tuple[int, ...]:
        """The host's CPUs it may run on; none: all that are nobody's own."""
        return self.isolate or self.pin

    @property
    def inherited(self) -> Limits:
        """Those of another machine that is made of this one: CPUs that this one has for itself are none of its."""
        return msgspec.structs.replace(self, isolate=())


class LimitChanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a machine's limits is to be otherwise, in the words of `Limits`; None leaves it."""

    pin: tuple[int, ...] | None = None
    isolate: tuple[int, ...] | None = None
    cpu_shares: int | None = None
    cpu_limit: int | None = None
    cpu_burst: int | None = None
    io_weight: int | None = None
    disk_iops: int | None = None
    disk_iops_burst: int | None = None
    disk_rate: int | None = None
    disk_rate_burst: int | None = None
    burst_time: int | None = None
    net: Rates | None = None

    def apply(self, limits: Limits) -> Limits:
        """``limits`` with these changes. A limit that is taken back takes its burst along, and the last burst its time, unless
        that is said, too."""
        said = {field: value for field in self.__struct_fields__ if (value := getattr(self, field)) is not None}
        for limit, burst in (("cpu_limit", "cpu_burst"), ("disk_iops", "disk_iops_burst"), ("disk_rate", "disk_rate_burst")):
            if said.get(limit) == 0:
                said.setdefault(burst, 0)
        changed = msgspec.structs.replace(limits, **said)
        if not (changed.disk_iops_burst or changed.disk_rate_burst or "burst_time" in said):
            changed = msgspec.structs.replace(changed, burst_time=1)
        return changed

    def beneath(self, other: LimitChanges) -> LimitChanges:
        """These changes, but for what ``other`` says."""
        said = {field: value for field in other.__struct_fields__ if (value := getattr(other, field)) is not None}
        return msgspec.structs.replace(self, **said)

    def __bool__(self) -> bool:
        return self != LimitChanges()


class Hold(msgspec.Struct, frozen=True):
    """How a machine that runs is held to one of its limits: its word (``cpu-limit``), what was asked for, whether it holds, and
    by what, or why not."""

    limit: str
    asked: str
    holds: bool
    by: str


def check_limits(limits: Limits) -> Limits:
    """``limits`` itself when some host could hold them. Raises UsageError (``bad_limit``, ``contradictory_limits``)."""
    _check(limits.cpu_shares, _LEAST_SHARES, _MOST_SHARES, "CPU shares")
    _check(limits.io_weight, _LEAST_WEIGHT, _MOST_WEIGHT, "an I/O weight")
    _check(limits.burst_time, 1, _LONGEST_BURST, "seconds of burst")
    for value, words in ((limits.cpu_limit, "a limit"), (limits.cpu_burst, "a burst")):
        if value and not _LEAST_CPU <= value <= _MOST_CPU:
            raise _bad(f"{words} of {format_cpus(value)} CPUs is not possible", "ask for 0.01 or more")
    for value, least, most, words in (
        (limits.disk_iops, _LEAST_IOPS, _MOST_IOPS, "disk requests a second"),
        (limits.disk_iops_burst, _LEAST_IOPS, _MOST_IOPS, "disk requests a second"),
        (limits.disk_rate, _LEAST_DISK_RATE, _MOST_DISK_RATE, "bytes a second"),
        (limits.disk_rate_burst, _LEAST_DISK_RATE, _MOST_DISK_RATE, "bytes a second"),
    ):
        if value:
            _check(value, least, most, words)
    for cpus in (limits.pin, limits.isolate):
        if not all(0 <= cpu < _MOST_PINNED for cpu in cpus) or list(cpus) != sorted(set(cpus)):
            raise _bad("that is no list of CPUs", "write it like 0,2-3")
    _check_together(limits)
    return limits


def _check(value: int, least: int, most: int, words: str) -> None:
    if not least <= value <= most:
        raise _bad(
            f"{value} {words} is not possible" if value >= 0 else f"{words} cannot be negative", f"ask for {least} to {most}"
        )


def _check_together(limits: Limits) -> None:
    if limits.pin and limits.isolate:
        raise _contradiction(
            f"it cannot be pinned to {format_pin(limits.pin)} and have {format_pin(limits.isolate)} for itself",
            "CPUs of its own are all it runs on: leave one of the two out, or say 'none' for it",
        )
    if limits.cores and limits.cpu_limit > len(limits.cores) * THOUSAND:
        raise _contradiction(
            f"a limit of {format_cpus(limits.cpu_limit)} CPUs is more than it is pinned to: {format_pin(limits.cores)}",
            "pin it to more, or limit it to less",
        )
    if limits.cpu_burst > limits.cpu_limit:
        raise _contradiction(
            f"a burst of {format_cpus(limits.cpu_burst)} CPUs is more than the limit it comes on top of: "
            f"{format_cpus(limits.cpu_limit)}",
            "the kernel saves up no more than one limit's worth",
        )
    for limit, burst, flag in (
        (limits.disk_iops, limits.disk_iops_burst, "--disk-iops"),
        (limits.disk_rate, limits.disk_rate_burst, "--disk-rate"),
    ):
        if burst and not limit:
            raise _contradiction(f"{flag}-burst has nothing to go beyond", f"give {flag} as well")
        if burst and burst < limit:
            raise _contradiction(f"{flag}-burst is less than {flag}", "a burst is how much it may have for a while: ask for more")
    if limits.burst_time != 1 and not (limits.disk_iops_burst or limits.disk_rate_burst):
        raise _contradiction("--burst-time has no burst to last so long", "give --disk-rate-burst or --disk-iops-burst as well")


def check_host(limits: Limits, cpus: Collection[int]) -> None:
    """Raises UsageError (``beyond_host``) when a host with these CPUs cannot hold ``limits``."""
    missing = [cpu for cpu in limits.cores if cpu not in cpus]
    if missing:
        there = format_pin(tuple(sorted(cpus)))
        raise UsageError(f"this host has no CPU {format_pin(tuple(missing))}", code="beyond_host", hint=f"it has: {there}")
    if limits.isolate and not set(cpus) - set(limits.isolate):
        raise UsageError(
            "no CPU of this host would be left for others", code="beyond_host", hint="give it fewer for itself, or --pin it"
        )
    if limits.cpu_limit > len(cpus) * THOUSAND:
        raise UsageError(
            f"a limit of {format_cpus(limits.cpu_limit)} CPUs is more than this host has: {len(cpus)}",
            code="beyond_host",
            hint="'none' is without limit",
        )


def parse_pin(text: str) -> tuple[int, ...]:
    """CPUs from ``0,2-3``, also as the kernel's files have them; none for ``none``. Raises UsageError (``bad_limit``)."""
    if text.strip() in ("none", ""):
        return ()
    found: set[int] = set()
    for word in text.split(","):
        match = _RANGE.fullmatch(word.strip())
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        if not first <= last < _MOST_PINNED:
            raise _bad(f"'{clean(text, longest=80)}' names no CPUs", "write it like 0,2-3; 'none' is all")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_asked_pin(text: str) -> tuple[int, ...]:
    """As `parse_pin`, of what somebody asks for: nothing is no wish, but perhaps a variable that was not set. Raises UsageError
    (``bad_limit``)."""
    if not text.strip():
        raise _bad("no CPUs are named", "write it like 0,2-3; 'none' is all")
    return parse_pin(text)


def format_pin(cpus: tuple[int, ...]) -> str:
    """The shortest text that `parse_pin` reads as ``cpus``: also what cpuset files hold."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"


def parse_cpus(text: str) -> int:
    """Thousandths of a CPU for ``1.5``; 0 for ``none``. Raises UsageError (``bad_limit``)."""
    if text.strip() in _NONE:
        return 0
    match = _CPUS.fullmatch(text.strip())
    if match is None:
        raise _bad(f"'{clean(text, longest=80)}' is no number of CPUs", "write it like 1.5; 'none' is without limit")
    return int(match[1]) * THOUSAND + int((match[2] or "").ljust(3, "0"))


def format_cpus(thousandths: int) -> str:
    """The text that `parse_cpus` reads as ``thousandths``."""
    return f"{thousandths / THOUSAND:g}" if thousandths else "none"


def parse_shares(text: str) -> int:
    """A weight of CPU; that of all others for ``none``. Raises UsageError (``bad_limit``)."""
    return _parse_weight(text, DEFAULT_SHARES, "CPU shares")


def parse_weight(text: str) -> int:
    """A weight of disk time; that of all others for ``none``. Raises UsageError (``bad_limit``)."""
    return _parse_weight(text, DEFAULT_WEIGHT, "I/O weight")


def _parse_weight(text: str, default: int, words: str) -> int:
    if text.strip() in ("0", "none"):
        return default
    return _number(text, f"'{clean(text, longest=80)}' is no number of {words}", "'none' is what all others have")


def parse_iops(text: str) -> int:
    """Requests a second; 0 for ``none``. Raises UsageError (``bad_limit``)."""
    if text.strip() in _NONE:
        return 0
    return _number(text, f"'{clean(text, longest=80)}' is no number of requests a second", "'none' is without limit")


def _number(text: str, message: str, hint: str) -> int:
    if not text.strip().isascii() or not text.strip().isdecimal() or len(text) > 12:
        raise _bad(message, hint)
    return int(text)


def parse_disk_rate(text: str) -> int:
    """Bytes a second for ``20M``; 0 for ``none``. Raises UsageError (``bad_limit``)."""
    if text.strip() in _NONE:
        return 0
    try:
        return parse_size(text.strip().removesuffix("/s"))
    except UsageError:
        raise _bad(f"'{clean(text, longest=80)}' is no rate", "write it like 20M (a second); 'none' is without limit") from None


def format_disk_rate(rate: int) -> str:
    """The text that `parse_disk_rate` reads as ``rate`` bytes a second."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if rate % factor == 0), ("", 1))
    return f"{rate // factor}{unit}" if rate else "none"


def parse_net_rate(text: str) -> Rates:
    """``50mbit`` for both ways, or ``UP/DOWN`` such as ``20mbit/100mbit``. Raises UsageError (``bad_rate``)."""
    up, slash, down = text.partition("/")
    rates = [parse_rate("0" if rate.strip() == "none" else rate) for rate in (up, down if slash else up)]
    return Rates(rates[0], rates[1])


def format_net_rate(rates: Rates) -> str:
    """The text that `parse_net_rate` reads as ``rates``."""
    up, down = (format_rate(rate) if rate else "none" for rate in (rates.up, rates.down))
    return up if up == down else f"{up}/{down}"


def narrower(one: Rates, other: Rates) -> Rates:
    """What both allow, for a card that is held to both."""
    return Rates(_least(one.up, other.up), _least(one.down, other.down))


def _least(one: int, other: int) -> int:
    return min(one, other) if one and other else one or other


# Each field of `Limits`: how it is called on a command line and in a profile, how it is read and how written.
WORDS: Final[Mapping[str, tuple[str, Callable[[str], Any], Callable[[Any], str]]]] = {
    "pin": ("pin", parse_asked_pin, format_pin),
    "isolate": ("isolate-cores", parse_asked_pin, format_pin),
    "cpu_shares": ("cpu-shares", parse_shares, str),
    "cpu_limit": ("cpu-limit", parse_cpus, format_cpus),
    "cpu_burst": ("cpu-burst", parse_cpus, format_cpus),
    "io_weight": ("io-weight", parse_weight, str),
    "disk_iops": ("disk-iops", parse_iops, str),
    "disk_iops_burst": ("disk-iops-burst", parse_iops, str),
    "disk_rate": ("disk-rate", parse_disk_rate, format_disk_rate),
    "disk_rate_burst": ("disk-rate-burst", parse_disk_rate, format_disk_rate),
    "burst_time": (
        "burst-time",
        lambda text: _number(text, f"'{clean(text, longest=80)}' is no number of seconds", "such as 10"),
        str,
    ),
    "net": ("net-rate", parse_net_rate, format_net_rate),
}


def words_of(said: Mapping[str, object]) -> LimitChanges:
    """Changes from words and values such as ``{"cpu-limit": 0.5, "disk_rate": "20M"}``, as a profile or a program says them.

    Raises UsageError (``bad_limit``), whose message begins with the word that is wrong.
    """
    fields = {word: field for field, (word, _, _) in WORDS.items()}
    found = {}
    for word, value in said.items():
        field = fields.get(word.replace("_", "-"))
        if field is None:
            near = nearest(word.replace("_", "-"), list(fields))
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(fields)}"
            raise _bad(f"{clean(word, longest=80)}: there is no such limit", hint)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise _bad(f"{word}: that is no value for a limit", "write text or a number")
        try:
            found[field] = WORDS[field][1](str(value))
        except UsageError as cause:
            raise _bad(f"{word}: {cause.message}", cause.hint or "") from None
    return LimitChanges(**found)


def _bad(message: str, hint: str) -> UsageError:
    return UsageError(message, code="bad_limit", hint=hint)


def _contradiction(message: str, hint: str) -> UsageError:
    return UsageError(message, code="contradictory_limits", hint=hint)
