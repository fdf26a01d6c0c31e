"""Which verb is legal in which state: two tables, and the one error that explains a refusal."""

from __future__ import annotations

from typing import Final

from insula.errors import DamagedRecord, WrongState
from insula.model.status import State

_ALLOWED: Final[dict[str, frozenset[State]]] = {
    "start": frozenset({State.STOPPED, State.SUSPENDED}),
    "stop": frozenset({State.STARTING, State.RUNNING, State.PAUSED}),
    "restart": frozenset({State.RUNNING, State.PAUSED}),
    "pause": frozenset({State.RUNNING, State.STARTING}),
    "resume": frozenset({State.PAUSED}),
    "rename": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "delete": frozenset({State.STOPPED, State.SUSPENDED}),
    "exec": frozenset({State.RUNNING}),
    "copy": frozenset({State.RUNNING}),
    "console": frozenset({State.STARTING, State.RUNNING, State.PAUSED}),
    "snapshot": frozenset({State.STOPPED, State.RUNNING, State.PAUSED}),
    "snapshot delete": frozenset({State.STOPPED, State.SUSPENDED, State.STARTING, State.RUNNING, State.PAUSED}),
    "restore": frozenset({State.STOPPED, State.SUSPENDED, State.STARTING, State.RUNNING, State.PAUSED}),
    "fork": frozenset({State.RUNNING, State.PAUSED}),
    "fork snapshot": frozenset({State.STOPPED, State.SUSPENDED, State.STARTING, State.RUNNING, State.PAUSED}),
    "export": frozenset({State.STOPPED, State.SUSPENDED, State.STARTING, State.RUNNING, State.PAUSED}),
    "import": frozenset({State.STOPPED, State.SUSPENDED, State.STARTING, State.RUNNING, State.PAUSED}),
    "merge": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "suspend": frozenset({State.RUNNING, State.PAUSED}),
    "clone": frozenset({State.STOPPED}),
    "limit": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "network attach": frozenset({State.STOPPED, State.RUNNING, State.PAUSED}),
    "network detach": frozenset({State.STOPPED, State.RUNNING}),
    "network link": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "network limit": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "network repair": frozenset({State.RUNNING}),
    "guard": frozenset({State.RUNNING, State.PAUSED}),
    "reclaim": frozenset({State.RUNNING}),
    "publish": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "unpublish": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "firewall": frozenset({State.STOPPED, State.SUSPENDED, State.RUNNING, State.PAUSED}),
    "capture": frozenset({State.STARTING, State.RUNNING, State.PAUSED}),
    "show security": frozenset({State.STARTING, State.RUNNING, State.PAUSED}),
}

# What is asked for is so already: as with docker and podman that is no error, so that a script may ask without looking first.
_ALREADY: Final = {
    "start": State.RUNNING,
    "stop": State.STOPPED,
    "pause": State.PAUSED,
    "resume": State.RUNNING,
    "suspend": State.SUSPENDED,
}

_DOING: Final = {
    "snapshot": "take a snapshot of it",
    "exec": "run a command in it",
    "copy": "copy files of it",
    "console": "attach to its console",
    "show security": "look at its jail",
    "network attach": "attach a network to it",
    "network detach": "detach a network from it",
    "network link": "plug or pull its cable",
    "network limit": "limit its network",
    "network repair": "give it a new network card",
    "guard": "hold it down",
    "reclaim": "have it give memory back",
    "publish": "publish its ports",
    "unpublish": "take its ports back",
    "firewall": "change its firewall",
    "capture": "capture its traffic",
}

_HINTS: Final[dict[tuple[str, State], str]] = {
    ("start", State.PAUSED): "to let it run on: insula resume {name}",
    ("pause", State.STOPPED): "to start it: insula start {name}",
    ("resume", State.STOPPED): "to start it: insula start {name}",
    ("exec", State.STOPPED): "to start it: insula start {name}",
    ("exec", State.PAUSED): "to let it run on: insula resume {name}",
    ("copy", State.STOPPED): "to start it: insula start {name}",
    ("copy", State.PAUSED): "to let it run on: insula resume {name}",
    ("console", State.STOPPED): "to start it: insula start {name}; what it printed before: insula logs {name}",
    ("delete", State.RUNNING): "stop it first, or: insula delete --force {name}",
    ("delete", State.PAUSED): "stop it first, or: insula delete --force {name}",
    ("delete", State.STARTING): "stop it first, or: insula delete --force {name}",
    ("fork", State.STOPPED): "to start it: insula start {name}; to copy it as it is: insula clone {name} NEW",
    ("clone", State.RUNNING): "to copy it while it runs: insula fork {name}",
    ("clone", State.PAUSED): "to copy it while it runs: insula fork {name}",
    ("exec", State.SUSPENDED): "to let it go on: insula start {name}",
    ("copy", State.SUSPENDED): "to let it go on: insula start {name}",
    ("console", State.SUSPENDED): "to let it go on: insula start {name}",
    ("pause", State.SUSPENDED): "to let it go on: insula start {name}",
    ("resume", State.SUSPENDED): "to let it go on: insula start {name}",
    ("restart", State.SUSPENDED): "to let it go on: insula start {name}",
    ("stop", State.SUSPENDED): "it is off; its memory is kept: insula start {name} lets it go on",
    ("snapshot", State.SUSPENDED): "to let it go on: insula start {name}",
    ("fork", State.SUSPENDED): "to let it go on: insula start {name}",
    ("clone", State.SUSPENDED): "to let it go on: insula start {name}",
    ("capture", State.STOPPED): "to start it: insula start {name}",
    ("show security", State.STOPPED): "to start it: insula start {name}",
    ("show security", State.SUSPENDED): "to let it go on: insula start {name}",
    ("network attach", State.SUSPENDED): "its memory knows the cards it has: let it go on first: insula start {name}",
    ("network detach", State.PAUSED): "its guest must let go of the card: insula resume {name}",
    ("network detach", State.SUSPENDED): "its memory knows the cards it has: let it go on first: insula start {name}",
    ("restart", State.STOPPED): "to start it: insula start {name}",
}


def is_allowed(verb: str, state: State) -> bool:
    return state in _ALLOWED[verb]


def is_already(verb: str, state: State) -> bool:
    """Whether a machine in ``state`` is what ``verb`` would make of it, so that nothing is left to do."""
    return _ALREADY.get(verb) is state


def check_transition(name: str, verb: str, state: State, problem: str | None = None) -> None:
    """Return when ``verb`` may run on a machine in ``state``, or has nothing to do there.

    Raises WrongState, or DamagedRecord for a broken machine.
    """
    if state is State.BROKEN:
        way = "bring the file back, or use the Insula that wrote it; to give the machine up, disks and all"
        raise DamagedRecord(f"{name} cannot be used: {problem}", hint=f"{way}: insula delete --force {name}")
    if not is_allowed(verb, state) and not is_already(verb, state):
        hint = _HINTS.get((verb, state))
        raise WrongState(
            f"{name} is {state}: cannot {_DOING.get(verb, f'{verb} it')}", hint=hint.format(name=name) if hint else None
        )
