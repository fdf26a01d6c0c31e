"""What is done about a noisy neighbour: held down step by step, let go step by step. Pure: from looks to actions.

One bad second proves nothing: who is to be held down must be the cause in several looks, more than it is not. Each step takes a
part of what it used, never below what is fair and never below a floor. When nobody has suffered for a while it is given back in
smaller steps. Whoever then makes others suffer again is held to what helped before, after less proof, and waits twice as long for
the next step back: so nothing flaps, and whatever is held is let go in the end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from insula.resources.pressure import FLOOR, Finding, Resource

STEP: Final = 0.5  # what a step leaves of what was used
EASE: Final = 0.85  # and what was left before a step back of what is after it
PROOF: Final = 3  # looks in which one must be the cause; one in which it is not takes one away
AGAIN: Final = 2  # and in which one must be that was held down before, or to too little
CALM: Final = 5  # looks without anybody suffering before the first step back
MOST_CALM: Final = 60
_PRESSED: Final = 0.25  # of a look, for one that uses all it is held to
_FORGET: Final = 300  # looks after which one that was let go is as good as any
_ENOUGH: Final = 0.98  # a step that takes less than the rest of this is none

Key = tuple[str, Resource]


class Hold(msgspec.Struct, frozen=True):
    """A machine held down: to ``cap`` (units as in `FLOOR`); ``used`` is what it used when that began."""

    cap: float
    used: float


class Action(msgspec.Struct, frozen=True):
    """``kind``: ``hold`` (``cap`` is new, or lower), ``ease`` (it is higher), ``release`` (there is none any more).
    ``sufferers``: for whose sake."""

    kind: Literal["hold", "ease", "release"]
    machine: str
    resource: Resource
    cap: float = 0.0
    used: float = 0.0
    fair: float = 0.0
    sufferers: tuple[str, ...] = ()


class _Course(msgspec.Struct):
    """How it went with one machine and resource. ``helped``: the cap at which nobody suffered any more."""

    named: int = 0
    calm: float = 0
    patience: int = CALM
    eased: bool = False
    was_held: bool = False
    helped: float = 0.0


class Judge(msgspec.Struct):
    """Takes one look after the other. ``held``: what is held down just now; what one that died held may be given at the start."""

    held: dict[Key, Hold] = msgspec.field(default_factory=dict)
    _courses: dict[Key, _Course] = msgspec.field(default_factory=dict)
    _proven: set[Key] = msgspec.field(default_factory=set)

    def decide(self, findings: Collection[Finding], present: Collection[str], pressing: Collection[Key] = ()) -> list[Action]:
        """What to do after a look: ``findings`` are of it, ``present`` are all machines that run, ``pressing`` those of them that
        use all they are held to. What is returned counts as done; see `undo`."""
        self._forget(present)
        self._proven.intersection_update((finding.cause, finding.resource) for finding in findings)
        named = {(finding.cause, finding.resource): finding for finding in findings}
        suffered = {finding.resource for finding in findings}
        actions = [self._accuse(key, finding) for key, finding in named.items()]
        for key in [key for key in self._courses if key not in named]:
            self._courses[key].named = max(0, self._courses[key].named - 1)
        actions += [
            self._spare(key, calm=key[1] not in suffered, presses=key in pressing) for key in list(self.held) if key not in named
        ]
        return [action for action in actions if action is not None]

    def inherit(self, held: Mapping[Key, Hold]) -> None:
        """Take over what one that died held down: nobody knows for how long, so the first step back comes early."""
        self.held |= held
        self._courses |= {key: _Course(calm=max(0, CALM - PROOF), was_held=True) for key in held}

    def drop(self, machine: str) -> None:
        """It has begun a new life: what held it is gone with the former one."""
        for key in [key for key in self.held if key[0] == machine]:
            del self.held[key]

    def is_proven(self, finding: Finding) -> bool:
        """Whether its cause has been that for long enough, or is held down for it."""
        key = (finding.cause, finding.resource)
        return key in self.held or key in self._proven

    def undo(self, action: Action, former: Hold | None) -> None:
        """It could not be done: what was held before still is."""
        key = (action.machine, action.resource)
        self.held.pop(key, None)
        if former is not None:
            self.held[key] = former

    def _accuse(self, key: Key, finding: Finding) -> Action | None:
        course = self._courses.setdefault(key, _Course())
        course.named += 1
        course.calm = 0
        if course.named < (AGAIN if course.was_held else PROOF):
            return None
        self._proven.add(key)
        if course.eased:
            course.patience = min(MOST_CALM, 2 * course.patience)
            course.eased = False
        hold = self.held.get(key)
        before = hold.cap if hold is not None else finding.used
        cap = STEP * min(before, finding.used)
        cap = max(FLOOR[finding.resource], finding.fair, min(cap, course.helped or cap))
        course.named = 0
        if cap > _ENOUGH * before:
            return None
        course.was_held = True
        self.held[key] = msgspec.structs.replace(hold, cap=cap) if hold is not None else Hold(cap, finding.used)
        return Action("hold", *key, cap, finding.used, finding.fair, finding.sufferers)

    def _spare(self, key: Key, *, calm: bool, presses: bool) -> Action | None:
        """A step back, if it is time. Of one that presses against its hold nobody knows what it would do without: that nobody
        suffers proves little, and the next step waits longer."""
        course = self._courses.setdefault(key, _Course())
        course.calm = course.calm + (_PRESSED if presses else 1) if calm else 0
        if course.calm < course.patience:
            return None
        course.calm = 0
        hold = self.held[key]
        if not course.eased:
            course.eased, course.helped = True, hold.cap
        cap = hold.cap / EASE
        if cap >= hold.used:
            del self.held[key]
            return Action("release", *key, used=hold.used)
        self.held[key] = msgspec.structs.replace(hold, cap=cap)
        return Action("ease", *key, cap, hold.used)

    def _forget(self, present: Collection[str]) -> None:
        """Whoever has ended; and the past of those that have behaved for long."""
        for key in [key for key in self.held if key[0] not in present]:
            del self.held[key]
        for key, course in list(self._courses.items()):
            if key not in self.held:
                course.calm += 1
            if key[0] not in present or (key not in self.held and course.calm > _FORGET):
                del self._courses[key]


def narrowest(holds: Mapping[Key, Hold], machine: str) -> dict[Resource, float]:
    """What a machine is held to, by resource."""
    return {resource: hold.cap for (name, resource), hold in holds.items() if name == machine}
