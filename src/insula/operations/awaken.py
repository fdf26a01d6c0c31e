"""Let a machine go on from a state: load it, and, once it runs, tell the guest what is different now.

QEMU loads, the guest stands (one that stood at its snapshot's instant: until `resume`) → cables out → it goes on → one request to
its agent: entropy, clock, and for a fork all that two machines must not share → cables in → others are let in to the agent
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from insula.errors import AgentAbsent, ChildFailed, GuestError, InsulaError
from insula.model.identity import Identity, Renewal
from insula.operations.addressing import asks_elsewhere, tell_clients
from insula.operations.admit import may_merge
from insula.operations.cabling import await_cards, cabled, plug_cables
from insula.operations.context import Context
from insula.operations.identify import KEY_TYPE, guest_identity
from insula.operations.idle import wait_idle
from insula.operations.limiting import hold_back, placed
from insula.operations.start import launch_plan
from insula.store import names
from insula.store.due import clear_due, read_due
from insula.store.machines import MachineRecord, write_machine
from insula.store.snapshots import MemoryState

if TYPE_CHECKING:
    from insula.guest.agent import GuestIdentity, Renewed
    from insula.guest.link import Link
    from insula.guest.wire import Fields
    from insula.operations.hanging import Hanging

_HOOKS_TIME: Final = 30.0
_ONCE: Final = 8.0  # seconds for a program that takes milliseconds
_REST: Final = 5.0  # and for a guest to come to rest; one that is busy for longer is busy by itself
_NAMELESS: Final = "spare"
# What a fork should have new; see model/identity.py.
_PARTS: Final = ("entropy", "connections", "clock", "timers", "machine-id", "hostname", "network")


@contextlib.contextmanager
def loaded(
    context: Context,
    folder: Path,
    record: MachineRecord,
    origin: Path,
    memory: MemoryState,
    run: str = names.RUN,
    *,
    beside: bool = False,
    later: list[Hanging] | None = None,
    name: str = "",
    ahead: bool = False,
) -> Iterator[None]:
    """Start a QEMU for the machine in ``folder`` that has loaded the state in the folder ``origin``; the guest stands. Within the
    context its keeper ends it when we die. ``beside``: another QEMU of the machine runs, so the cards stand by. ``later``: as for
    `cabled`. ``name``: what the machine will be called, where that is not what its folder is called. ``ahead``: the state is
    still being written, and to be loaded within the context, by `Engine.load`.

    Raises as `Engine.launch`, and MachineEnded (``load_failed``).
    """
    from insula.engines.base import LoadPlan
    from insula.guest.keeper import hold, quit_machine
    from insula.guest.link import open_link

    mapped = memory.offset is not None
    plan = LoadPlan(None if ahead else origin / names.STATE, origin / names.MEMORY if mapped else None, memory.offset or 0)
    with contextlib.ExitStack() as held:
        link: Link | None = None
        try:
            with (
                placed(context, record) as place,
                cabled(context, name or folder.name, record, standby=beside, later=later) as nics,
            ):
                launching = launch_plan(folder, record, nics, plan, run, place, may_merge(context))
                context.engine.launch(replace(launching, name=name or folder.name))
                hold_back(context, folder, record, run)
                link = held.enter_context(open_link(folder / run))
                held.enter_context(hold(link, "quit"))
        except BaseException:
            if link is not None:  # it has loaded, but its cards could not be hung up
                with contextlib.suppress(InsulaError):
                    quit_machine(link, "kill")
            raise
        with contextlib.suppress(OSError):  # what is known of the memory file's sum, for snapshots that will rest on it
            os.link(origin / names.VERIFIED_LAYERS, folder / run / names.VERIFIED_LAYERS)
        yield


def awaken(
    context: Context,
    folder: Path,
    record: MachineRecord,
    timeout: float,
    former: Identity | None = None,
    *,
    on_drop: str = "quit",
    moved: bool = False,
    coming: Sequence[Hanging] = (),
) -> None:
    """Let the loaded guest go on and tell it the time and, if it is a fork of a machine with the identity ``former``, who it is.

    Until that is done its agent answers nobody else, and when we die meanwhile a fork is ended (``on_drop``), any other machine
    goes on. What was made new in a fork is noted in its record. A guest without an agent just goes on. ``moved``: its cards have
    other addresses than it believes. ``coming``: a fork's cards that may not hang yet.

    Raises MachineEnded, GuestError, AgentAbsent (no answer within ``timeout`` seconds).
    """
    if former is None:
        _go_on(context, folder, record, timeout, moved=moved)
        return
    renewal = _become(context, folder, record, timeout, former, on_drop, coming=coming)
    write_machine(folder, _with(record, renewal))


def awaken_due(context: Context, folder: Path, record: MachineRecord, timeout: float) -> None:
    """As `awaken`, for a guest that was loaded to stand and is told to go on only now. When that fails, or we die, it stands
    again, its agent answers nobody, and all of it is still due. One that was to go on at once, but for a death, goes on in any
    case."""
    due = read_due(folder / names.RUN)
    assert due is not None
    on_drop = "pause" if due.stands else "resume"
    if due.former is None:
        _go_on(context, folder, record, timeout, on_drop, moved=due.moved)
    else:
        write_machine(folder, _with(record, _become(context, folder, record, timeout, due.former, on_drop)))
    clear_due(folder / names.RUN)  # the last: to do it all twice does no harm


def rehearse(context: Context, folder: Path, record: MachineRecord, timeout: float, former: Identity) -> None:
    """Let a loaded fork come to itself, come to rest and stand again, before it has a name: when it gets one, what remains to be
    done was done once before, so that an emulated guest's code for it is translated and in its caches. Hooks are left for then,
    and the cables stay out.

    Raises as `awaken`.
    """
    if record.boot.agent:
        _become(context, folder, record, timeout, former, rehearsal=True)
        wait_idle(folder, record.id, _REST)
        context.engine.pause(folder / names.RUN)


def _with(record: MachineRecord, renewal: Renewal) -> MachineRecord:
    left = {**renewal.left, "tpm": "its keys are those of the machine it was forked from"} if record.spec.tpm else renewal.left
    return replace(record, renewed=replace(renewal, left=left))


@contextlib.contextmanager
def _gated(context: Context, run: Path, on_drop: str) -> Iterator[Link]:
    """Keep all others from the agent; ``on_drop`` as for `hold`. With ``pause`` they are kept from it also when this fails."""
    from insula.guest.keeper import hold
    from insula.guest.link import open_link

    with open_link(run) as link:
        one = hold(link, on_drop, gate=True)
        try:
            yield link
        except BaseException:
            if on_drop == "pause":
                with contextlib.suppress(InsulaError):
                    context.engine.pause(
                        run
                    )  # the keeper does it, too, when the connection drops; but who asks next sees it done
            else:
                one.release()
            raise
        one.release()


def _go_on(
    context: Context, folder: Path, record: MachineRecord, timeout: float, on_drop: str = "resume", *, moved: bool = False
) -> None:
    run = folder / names.RUN
    if record.nics:
        plug_cables(context, run, record)
    if not record.boot.agent:
        context.engine.resume(run)
        return
    with _gated(context, run, on_drop) as link:
        context.engine.resume(run)
        hello = _wait(link, folder.name, timeout)
        identity = None
        if moved or hello.text("hostname") != folder.name:
            identity = guest_identity(context, folder.name, record, record.identity if moved else None)
        _renew(link, hello, identity)
        tell_clients(link, record, "renew")  # its lease may have run out while nobody ran


def _become(
    context: Context,
    folder: Path,
    record: MachineRecord,
    timeout: float,
    former: Identity,
    on_drop: str = "quit",
    *,
    rehearsal: bool = False,
    coming: Sequence[Hanging] = (),
) -> Renewal:
    run = folder / names.RUN
    deadline = time.monotonic() + timeout
    with _gated(context, run, on_drop) as link:
        context.engine.set_links(run, False)
        context.engine.resume(run)
        if not record.boot.agent:
            await_cards(coming)
            plug_cables(context, run, record)
            return Renewal(["generation"], dict.fromkeys(_PARTS, "the guest has no agent"))
        key = _host_key(folder, record, KEY_TYPE)  # while the guest comes to itself
        hello = _wait(link, folder.name, timeout)
        identity = guest_identity(context, _NAMELESS if rehearsal else folder.name, record, former, key)
        hooks = 0.0 if rehearsal else min(deadline - time.monotonic(), _HOOKS_TIME)
        renewed = _renew(link, hello, identity, hello.text("hostname"), hooks)
        kept_lease = ""
        if rehearsal:
            _run_once(link)
        else:
            kept_lease = tell_clients(link, record, "leave")
            await_cards(coming)
            plug_cables(context, run, record)
            kept_lease = kept_lease or tell_clients(link, record, "begin")
    return _complete(folder, record, renewed, kept_lease)


def _run_once(link: Link) -> None:
    """Let a program run in a spare. One without that program has not lost anything."""
    with contextlib.suppress(GuestError):
        link.open("exec", argv=("true",)).finish(timeout=_ONCE)


def _wait(link: Link, name: str, timeout: float) -> Fields:
    from insula.guest.keeper import wait_agent

    try:
        return wait_agent(link, timeout)
    except GuestError as cause:
        if cause.code != "timeout":
            raise
        raise AgentAbsent(f"{name} did not answer within {timeout:g} s", code="agent_timeout") from cause


def _renew(link: Link, hello: Fields, identity: GuestIdentity | None, former: str | None = None, hooks: float = 0.0) -> Renewed:
    """One request, or as many as an agent of before needs."""
    from insula.guest.agent import Renewed, renew, reseed, set_clock, set_identity

    if "renew" in hello.texts("features"):
        return renew(link, identity, former=former, hooks=hooks)
    reseed(link)
    set_clock(link)
    if identity is not None:
        set_identity(link, identity)
    old = "the guest's agent is too old for it"
    return Renewed(
        ("entropy", "clock", "machine-id", "hostname", "network"), {"connections": old, "timers": old, "hooks": old}, ()
    )


def _host_key(folder: Path, record: MachineRecord, kind: str) -> tuple[tuple[str, bytes], ...]:
    """A key of its own. A directly booted guest has no SSH server, as a rule, or makes it itself."""
    from insula.host.hostkeys import make_host_key

    if record.boot.kind == "direct":
        return ()
    with contextlib.suppress(ChildFailed):  # then the guest makes it itself
        return make_host_key(kind, f"root@{folder.name}", folder / names.RUN)
    return ()


def _complete(folder: Path, record: MachineRecord, renewed: Renewed, kept_lease: str) -> Renewal:
    """Make the keys of slow kinds that the guest had, too. Nobody waits for that to be let in. ``kept_lease``: why a fork may
    still have an address of its former self."""
    from insula.guest.agent import GuestIdentity, set_identity
    from insula.guest.link import open_link

    left = {**renewed.left, **({"lease": kept_lease} if kept_lease else {})}
    done = [*renewed.done, *(["lease"] if asks_elsewhere(record) else [])]
    for name in renewed.missing_keys:
        kind = name.removeprefix("ssh_host_").removesuffix("_key")
        try:
            key = _host_key(folder, record, kind) if kind in ("ecdsa", "ed25519", "rsa") else ()
            if not key:
                raise GuestError(f"no {kind} key could be made")
            with open_link(folder / names.RUN) as link:
                set_identity(link, GuestIdentity(host_keys=key))
        except InsulaError as failure:
            left["host-keys"] = failure.message
    return Renewal(["generation", *(part for part in done if part not in left)], left)
