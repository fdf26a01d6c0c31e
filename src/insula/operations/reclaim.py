"""Take memory back from machines, when a verb needs more than there is: in this order, one after the other, and no more than it
needs.

    spares → warm states, where they lie in memory → pages that guests have free → balloons → equal pages merged, if the host's
    owner allows that → machines that nobody uses suspended, if he allows it

Each rung offers what it could give, at most; when all of them together are too little nothing is taken. What was done is said to
whoever asked, and stands in the events of the machines concerned. See docs/limits.md.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from insula.errors import InsulaError
from insula.host import samepages
from insula.host.holes import is_in_memory
from insula.isolation.inhabitants import inhabitants
from insula.model.requests import SuspendMachine
from insula.model.status import State
from insula.model.units import format_size
from insula.operations.context import Context
from insula.operations.observe import is_alive, observe_state
from insula.operations.operation import Operation
from insula.operations.rest import is_at_rest, is_attended
from insula.operations.squeeze import LEAST, can_squeeze, squeeze, taken_from
from insula.resources.admission import PROCESS, Claim
from insula.resources.policy import Policy
from insula.store import names
from insula.store.events import append_event
from insula.store.locks import held
from insula.store.machines import MachineRecord
from insula.store.spares import all_records
from insula.store.warm import remove_warm, warm_keys

_MERGING: Final = 20.0  # seconds for the kernel to look through all pages twice
_PAGES: Final = 5000  # at a time, every 20 ms, for so long: 1 GB a second
_LOOKS: Final = 0.25
_PRESSES: Final = 4
_SPARE, _WARM = "spare", "warm state"
_ENDS: Final = {_SPARE: "ended", _WARM: "deleted"}


class Offer(NamedTuple):
    """Up to ``gain`` bytes. ``take`` is told how many are wanted, and returns what it did, in words; empty: nothing."""

    gain: int
    take: Callable[[int], str]


class Need(msgspec.Struct, frozen=True):
    """What is short. ``missing``: so many bytes are, just now. ``claims``: what those that run claim, by their ids, and
    ``counted``: what a machine is counted with. ``needs``: a folder that the verb is about to use."""

    context: Context
    operation: Operation
    policy: Policy
    missing: Callable[[], int]
    claims: Mapping[str, Claim]
    counted: Callable[[int], int]
    needs: Path | None = None

    @property
    def why(self) -> str:
        return f"{self.operation.verb} {self.operation.target}".strip()

    def running(self) -> Iterator[tuple[Path, MachineRecord, Claim]]:
        """Machines that run, and nobody works on; no spares."""
        for folder, record in all_records(self.context.home):
            claim = self.claims.get(record.id)
            if claim is None or folder.parent != self.context.home.machines or observe_state(folder)[0] is not State.RUNNING:
                continue
            with held(folder / names.LOCK) as free:
                pass
            if free:
                yield folder, record, claim


def reclaim(need: Need) -> None:
    """Take back as much as is missing, if that can be; says what was done. Raises Interrupted."""
    rungs = [list(rung(need)) for rung in _RUNGS]
    short, done = need.missing(), []
    begun = short
    for number, rung in enumerate(rungs):
        if short <= 0 or short > sum(offer.gain for offers in rungs[number:] for offer in offers):
            break
        for offer in rung:
            with contextlib.suppress(InsulaError, OSError):  # it has ended meanwhile, or is worked on
                done.append(offer.take(short))
            need.operation.check()
            if (short := need.missing()) <= 0:
                break
    if words := told([word for word in done if word]):
        need.operation.remarks.append(f"freed {format_size(max(0, begun - short))} of memory: {words}")


def told(done: list[str]) -> str:
    """Pure: what was done, several times the same said once."""
    words = []
    for word in dict.fromkeys(done):
        count = done.count(word)
        words.append(f"{count} {word}{'s' if count > 1 else ''} {_ENDS[word]}" if word in _ENDS else word)
    return ", ".join(words)


def _spares(need: Need) -> Iterator[Offer]:
    for folder, record in all_records(need.context.home):
        claim = need.claims.get(record.id)
        if claim is not None and folder.parent.parent == need.context.home.spares:
            yield Offer(_all_of(need, claim), partial(_end_spare, need, folder))


def _end_spare(need: Need, folder: Path, wanted: int) -> str:
    from insula.operations.spare import give_back

    del wanted
    return _SPARE if give_back(need.context, folder) else ""


def _warm_states(need: Need) -> Iterator[Offer]:
    """Files on a disk take no memory that anybody else could not have."""
    home = need.context.home
    keys = warm_keys(home)
    if not keys or not is_in_memory(home.warm.stat().st_dev):
        return
    for key in sorted(keys, key=lambda key: _made_at(home.warm / key)):
        if home.warm / key != need.needs and (gain := _only_here(home.warm / key)):
            yield Offer(gain, partial(_delete_warm, need, key))


def _made_at(folder: Path) -> float:
    with contextlib.suppress(OSError):  # somebody else deletes it
        return folder.stat().st_mtime
    return 0.0


def _delete_warm(need: Need, key: str, wanted: int) -> str:
    del wanted
    remove_warm(need.context.home, key)
    return _WARM


def _only_here(folder: Path) -> int:
    """Bytes that would be free without it: those of files that nobody else names. Who maps one has a name for it."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                seen = os.lstat(os.path.join(place, file))
                total += seen.st_blocks * 512 if seen.st_nlink == 1 else 0
    return total


def _free_pages(need: Need) -> Iterator[Offer]:
    return _squeezable(need, keep=False)


def _balloons(need: Need) -> Iterator[Offer]:
    return _squeezable(need, keep=True)


def _squeezable(need: Need, *, keep: bool) -> Iterator[Offer]:
    """Machines that own more than they are counted with: what they own below that is promised to them in any case."""
    if need.policy.balloon is None:
        return
    found = []
    for folder, record, claim in need.running():
        room = record.hardware.usable * (100 - need.policy.balloon) // 100 - taken_from(folder)
        hidden = max(0, record.hardware.usable - taken_from(folder) - max(0, claim.owned - PROCESS))
        gain = min(claim.owned - need.counted(claim.worst), room - hidden)
        if gain >= LEAST and can_squeeze(folder, record):
            # What is free in a guest is part of what its balloon can get: it counts once.
            found.append(Offer(gain if keep else 0, partial(_squeeze, need, folder, hidden, keep)))
    yield from sorted(found, key=lambda offer: -offer.gain)


def _squeeze(need: Need, folder: Path, hidden: int, keep: bool, wanted: int) -> str:
    """As often as it helps: how much of its memory the host has not given it yet is known only roughly."""
    assert need.policy.balloon is not None
    need.operation.tell(f"ask {folder.name} for memory")
    given = 0
    for _ in range(_PRESSES):
        more = squeeze(need.context, folder.name, max(LEAST, wanted), hidden, need.policy.balloon, need.why, keep=keep)
        given, hidden = given + more, 0
        if not more or not keep or (wanted := need.missing()) <= 0:
            break
    if not given:
        return ""
    return f"{folder.name} gave back what its guest does not use"


def _equal_pages(need: Need) -> Iterator[Offer]:
    """Half of what machines own is the most that there is any hope for."""
    if need.policy.ksm and need.claims and samepages.can_merge() and not samepages.is_merging():
        yield Offer(sum(claim.owned for claim in need.claims.values()) // 2, partial(_merge_pages, need))


def _merge_pages(need: Need, wanted: int) -> str:
    """Turn merging on, and give it time to look through all pages."""
    del wanted
    need.operation.tell("have the kernel merge equal pages")
    former = _mark_merging(need.context)
    samepages.merge(True)
    end, deadline = samepages.rounds() + 2, time.monotonic() + _MERGING
    with samepages.hastened(_PAGES, former):
        while need.missing() > 0 and samepages.rounds() < end and time.monotonic() < deadline:
            need.operation.wait(_LOOKS)
    return "equal pages merged from now on"


def _mark_merging(context: Context) -> int:
    """Write down that it is we who turn merging on, and how fast it was: for whoever turns it off, should we not come to that."""
    mark = context.home.host / names.KSM
    if not mark.exists():
        mark.write_text(str(samepages.pace()))
    return int(mark.read_text() or samepages.pace())


def end_merging(context: Context, policy: Policy) -> None:
    """Turn off what `_merge_pages` turned on, once nobody needs it, or it is not allowed any more."""
    mark = context.home.host / names.KSM
    if mark.exists() and not (policy.ksm and any(is_alive(folder) for folder, _ in all_records(context.home))):
        with contextlib.suppress(OSError):
            samepages.merge(False) if policy.ksm else samepages.undo()
            samepages.keep_pace(int(mark.read_text() or samepages.pace()))
            mark.unlink(missing_ok=True)


def _idle_machines(need: Need) -> Iterator[Offer]:
    if need.policy.suspend is None:
        return
    for folder, record, claim in need.running():
        if not record.ephemeral and is_at_rest(folder, list(inhabitants(folder, record.id)), need.policy.suspend):
            yield Offer(_all_of(need, claim), partial(_suspend, need, folder, record.id))


def _suspend(need: Need, folder: Path, machine_id: str, wanted: int) -> str:
    from insula.operations.suspend import suspend

    del wanted
    if is_attended(inhabitants(folder, machine_id)):  # since it was looked at: what came before may have taken minutes
        return ""
    need.operation.tell(f"suspend {folder.name}, which is idle")
    suspend(need.context, SuspendMachine(name=folder.name), Operation("suspend", folder.name))
    append_event(folder, "made-room", **{"for": need.why})
    return f"{folder.name} suspended, which was idle (to go on: insula start {folder.name})"


def _all_of(need: Need, claim: Claim) -> int:
    """What there is more when a machine ends: what it owns, and what was still promised to it."""
    return max(claim.owned, need.counted(claim.worst))


_RUNGS: Final = (_spares, _warm_states, _free_pages, _balloons, _equal_pages, _idle_machines)
