"""The guard: look at all machines again and again, find who makes others suffer, hold it down step by step, let it go again.

How it decides: resources/pressure.py and resources/holds.py. What it does: holding.py. It changes no record, and takes all back
when it ends; what one that was killed could not take back the next one finds, and gives back in its turn.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from insula.errors import Busy, InsulaError
from insula.model.guarding import Disturbance, GuardLook, GuardStep
from insula.model.limits import THOUSAND
from insula.model.resource_requests import GuardMachines
from insula.model.streams import Streams
from insula.operations.context import Context
from insula.operations.holding import can_hold_cpu, held_down, hold_down
from insula.operations.operation import Operation
from insula.operations.sampling import Sampler, Seen
from insula.operations.stats import check_interval, rates_between, write_line
from insula.resources.holds import PROOF, Action, Hold, Judge, Key
from insula.resources.pressure import OPERATION, Finding, Resource, Use, find
from insula.store import names
from insula.store.events import append_event
from insula.store.locks import alone

_PATIENCE = 5.0  # seconds for whoever works on a machine when all is taken back
_EVENTS = {"hold": "held-down", "ease": "eased", "release": "let-go"}


def guard(context: Context, request: GuardMachines, operation: Operation, streams: Streams) -> None:
    """Look until the operation is cancelled, or ``once``: until it can be judged. Writes lines of JSON, each a `GuardLook`.

    Raises NotFound, UsageError, Busy (``guarded``: another guard is at work), Interrupted.
    """
    check_interval(request.interval)
    with contextlib.ExitStack() as stack:
        if not request.dry_run:
            context.home.prepare()
            if not stack.enter_context(alone(context.home.host / names.GUARD_LOCK)):
                raise Busy("a guard is at work already", code="guarded", hint="to look without doing anything: --dry-run")
        sampler = stack.enter_context(Sampler(context, request.names))
        _Guard(context, request, operation, streams, sampler).work()


class _Guard:
    def __init__(
        self, context: Context, request: GuardMachines, operation: Operation, streams: Streams, sampler: Sampler
    ) -> None:
        self._context = context
        self._request = request
        self._operation = operation
        self._streams = streams
        self._sampler = sampler
        self._judge = Judge()

    def work(self) -> None:
        before = self._sampler.sample()
        if not self._request.dry_run:
            self._judge.inherit({(name, resource): hold for name, seen in before.items() for resource, hold in _holds(seen)})
        looks = 0
        try:
            while not self._request.once or looks < PROOF:
                self._operation.wait(self._request.interval)
                after = self._sampler.sample()
                self._look(before, after)
                before, looks = after, looks + 1
        finally:
            if not self._request.once:
                self._take_back()

    def _look(self, before: Mapping[str, Seen], after: Mapping[str, Seen]) -> None:
        uses = {name: use for name, seen in after.items() if (use := _use(before.get(name), seen)) is not None}
        for name in after.keys() & before.keys():
            if after[name].sample.life != before[name].sample.life:
                self._judge.drop(name)
        findings = find(uses, os.cpu_count() or 1)
        former = dict(self._judge.held)
        pressing = [key for key in former if key[0] in uses and uses[key[0]].is_at_limit(key[1])]
        steps = [self._do(action, former, after) for action in self._judge.decide(findings, after, pressing)]
        held: dict[str, dict[str, float]] = {}
        for (name, resource), hold in self._judge.held.items():
            held.setdefault(name, {})[resource] = hold.cap
        disturbances = [_told(finding, proven=self._judge.is_proven(finding)) for finding in findings]
        look = GuardLook(time.time(), len(after), disturbances, steps, held, self._request.dry_run)
        write_line(self._streams, msgspec.json.encode(look))

    def _do(self, action: Action, former: Mapping[Key, Hold], seen: Mapping[str, Seen]) -> GuardStep:
        """Do it; what cannot be done is told, and tried again by the next look that asks for it."""
        problem = None
        if self._request.dry_run:
            self._judge.undo(action, former.get((action.machine, action.resource)))
        else:
            problem = self._apply(action)
            if problem is not None:
                self._judge.undo(action, former.get((action.machine, action.resource)))
            elif action.machine in seen:
                _note(seen[action.machine].folder, action)
        return GuardStep(action.machine, action.resource, action.kind, action.cap, action.used, list(action.sufferers), problem)

    def _apply(self, action: Action) -> str | None:
        """Why it could not be done."""
        if action.kind == "hold" and action.resource == "cpu" and not can_hold_cpu():
            return "nobody but root can give a thread back what it loses, and there is no control group for CPU time"
        holds = {resource: hold for (name, resource), hold in self._judge.held.items() if name == action.machine}
        try:
            hold_down(self._context, action.machine, holds)
        except (InsulaError, OSError) as refusal:
            return str(refusal)
        return None

    def _take_back(self) -> None:
        """All at once: nobody looks any more."""
        for name in sorted({name for name, _ in self._judge.held}):
            with contextlib.suppress(InsulaError, OSError):  # it has ended, or is worked on: the next guard finds it
                hold_down(self._context, name, {}, patience=_PATIENCE)
                append_event(self._context.home.machine(name), "let-go", reason="the guard ended")


def _holds(seen: Seen) -> Sequence[tuple[Resource, Hold]]:
    return list(held_down(seen.folder).items())


def _use(before: Seen | None, seen: Seen) -> Use | None:
    rates = rates_between(before, seen)
    if rates is None:
        return None
    spec, limits = seen.record.spec, seen.record.limits
    disks = max(1, len(seen.record.disks))
    caps: dict[Resource, float] = {
        "cpu": limits.cpu_limit / THOUSAND,
        "disk": min((each for each in (limits.disk_rate, limits.disk_iops * OPERATION) if each), default=0) * disks,
        "network": limits.net.up / 8,
    }
    for resource, hold in held_down(seen.folder).items():
        caps[resource] = min(caps[resource] or hold.cap, hold.cap)
    use = Use(rates, seen.record.hardware.used_cpus, float(limits.cpu_shares), float(limits.io_weight), seen.sample.cores)
    return msgspec.structs.replace(use, device=_device(seen.folder), networks=frozenset(spec.networks), limits=caps)


def _device(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / names.DISKS).stat().st_dev
    return 0


def _told(finding: Finding, *, proven: bool) -> Disturbance:
    return Disturbance(finding.resource, finding.cause, list(finding.sufferers), finding.used, finding.fair, proven)


def _note(folder: Path, action: Action) -> None:
    words: dict[str, object] = {"resource": action.resource}
    if action.kind != "release":
        words["to"] = round(action.cap, 3)
    if action.sufferers:
        words |= {"for": list(action.sufferers), "used": round(action.used, 3)}
    append_event(folder, _EVENTS[action.kind], **words)
