"""How a machine is right now, from its folder and its keeper. Reads only, takes no lock, believes nothing unchecked."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any, Final

from insula.errors import InsulaError
from insula.host.sockets import is_listening
from insula.model.shape import Shape, shape_of
from insula.model.spec import MachineSpec
from insula.model.status import End, MachineStatus, State
from insula.model.units import format_size
from insula.store import names
from insula.store.ends import read_end
from insula.store.machines import MachineRecord, read_machine
from insula.store.tpm import is_served

TPM_ENDED: Final = "its TPM has ended; restart it to have one again"
_EXIT = 0.002  # seconds between a process closing one socket on its way out and closing the next
_BUSY = 0.2  # seconds between two looks at a keeper that has no room for us
# The verbs, as the journal has them, before whose end a machine is nobody's to resume.
_COMING_UP: Final = frozenset({"create", "start", "fork", "wake"})
_STATES = {"starting": State.STARTING, "running": State.RUNNING, "paused": State.PAUSED}


def is_alive(folder: Path) -> bool:
    """Whether the machine has a keeper: something accepts on its socket. Never a pid, which may be somebody else's by now."""
    return is_listening(folder / names.RUN / names.KEEPER_SOCKET)


def wait_gone(folder: Path, timeout: float) -> bool:
    """Whether the keeper is gone within ``timeout`` seconds: nobody listens any more.

    It says nothing unasked but that it has no room, so all else there is to read on a connection is its end: either tells
    when to look again.
    """
    from insula.host.sockets import connect_unix

    deadline = time.monotonic() + timeout
    pause = _EXIT
    while (left := deadline - time.monotonic()) > 0:
        try:
            with connect_unix(folder / names.RUN / names.KEEPER_SOCKET, wait=False) as connection:
                connection.settimeout(left)
                if connection.recv(1):
                    pause = min(2 * pause, _BUSY, left)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionResetError:
            pass
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return True
        time.sleep(pause)
    return False


def observe_state(folder: Path) -> tuple[State, dict[str, Any]]:
    """The state, and what the keeper says about it (empty when there is no keeper)."""
    if not is_alive(folder):
        return State.STOPPED, {}
    untrusted = _read_json(folder / names.RUN / names.STATUS)
    if untrusted.get("state") == "ended":  # the keeper is on its way out
        return State.STOPPED, {}
    state = _STATES.get(str(untrusted.get("state")), State.STARTING)
    if state is State.PAUSED and _is_being_born(folder):
        state = State.STARTING
    return state, untrusted


def _is_being_born(folder: Path) -> bool:
    """Whether the machine stands only because a verb is bringing it up, or died over it."""
    from insula.operations import journal

    entry = journal.pending(folder)
    return entry is not None and entry.verb in _COMING_UP


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON object that a jailed process wrote; empty when it is anything else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(path, "rb") as stream:
            untrusted = json.loads(stream.read(16384))
        if isinstance(untrusted, dict):
            return untrusted
    return {}


def observe(folder: Path) -> tuple[MachineStatus, MachineRecord | None]:
    """One machine as `list` shows it; a broken record makes a broken machine, not an error."""
    try:
        record = read_machine(folder)
    except (InsulaError, OSError) as cause:
        return _broken(folder.name, str(cause)), None
    state, untrusted = observe_state(folder)
    if state is State.STOPPED and (folder / names.SUSPENDED).is_dir():
        state = State.SUSPENDED
    shape = record.hardware if state.has_process or state is State.SUSPENDED else shape_of(record.spec, None)
    status = MachineStatus(
        name=folder.name,
        kind=record.kind,
        state=state,
        image=record.image.name,
        addresses=machine_addresses(record) if state.has_process else [],
        cpus=shape.used_cpus,
        memory=shape.usable,
        disk=record.spec.disk,
        created=record.created,
        agent=untrusted.get("agent") is True,
        reason=_paused_because(untrusted) if state is State.PAUSED else None,
        ephemeral=record.ephemeral,
        problem=_what_ails(folder, record) if state in (State.RUNNING, State.PAUSED) else None,
        ended=None if state.has_process else last_end(folder),
        next_start=_next_start(record.spec, shape),
        unjailed=_unjailed(folder) if record.insecure and state.has_process else None,
    )
    return status, record


def _next_start(spec: MachineSpec, shape: Shape) -> str | None:
    """What the machine boots with next time, when that is not what it has."""
    words = [f"{spec.cpus} CPUs"] if spec.cpus != shape.used_cpus else []
    words += [format_size(spec.memory)] if spec.memory != shape.usable else []
    return ", ".join(words) or None


def _what_ails(folder: Path, record: MachineRecord) -> str | None:
    """What a running machine has lost, if it has lost something."""
    if record.spec.tpm and not is_served(folder / record.tpm):
        return TPM_ENDED
    return None


def _unjailed(folder: Path) -> str | None:
    from insula.isolation.bare import lacking

    return lacking(folder / names.RUN)


# QEMU's words for a guest that stands because its state was loaded or written (RunState in its qapi/run-state.json).
_ON_THE_WAY: Final = frozenset({"prelaunch", "inmigrate", "finish-migrate", "postmigrate", "save-vm", "restore-vm"})


def _paused_because(untrusted: dict[str, Any]) -> str | None:
    """The keeper's word for a pause nobody asked for, such as ``no-space``; None for one that somebody did, also where QEMU has a
    word of its own for how it came to stand."""
    reason = untrusted.get("reason")
    if not isinstance(reason, str) or reason in _ON_THE_WAY:
        return None
    return reason if re.fullmatch(r"[a-z][a-z-]{0,31}", reason) else None


def _broken(name: str, problem: str) -> MachineStatus:
    return MachineStatus(
        name=name, kind="vm", state=State.BROKEN, image="", addresses=[], cpus=0, memory=0, disk=0, created=0.0, problem=problem
    )


def machine_addresses(record: MachineRecord) -> list[str]:
    """Addresses the guest was given on its networks; of one that was started by an earlier version, behind its passt."""
    if not record.nics:
        from insula.networks.passt import ADDRESS

        return [ADDRESS] if record.spec.networks else []
    return [address for nic in record.nics for address in (nic.ipv4, nic.ipv6) if address is not None]


def last_end(folder: Path) -> End | None:
    """Why the machine ended last: settled already, or still as the keeper wrote it.

    Who settles it notes the end before the run folder goes, piece by piece: where the keeper's record is gone, there is the note.
    """
    for read in (read_exit, read_end):
        with contextlib.suppress(FileNotFoundError, InsulaError):
            return read(folder)
    return None


# QEMU's and the keeper's words for an end, in ours. `failed` (a status and no word of QEMU's) depends on whether the guest ran.
_REASONS = {
    "guest-shutdown": "guest-shutdown",
    "guest-reset": "guest-reset",
    "guest-panic": "guest-panic",
    "host-qmp-quit": "stopped",
    "host-qmp-system-reset": "stopped",
    "host-signal": "stopped",
    "ended": "stopped",
    "killed": "killed",
    "crashed": "crashed",
}


def _reason(untrusted: dict[str, Any]) -> str | None:
    """Pure: why it ended, or None when the record does not say."""
    word = str(untrusted.get("reason"))
    if untrusted.get("paused") == "no-space":
        return "disk-full"
    if word == "failed":
        return "crashed" if untrusted.get("ran") is True else "failed-to-start"
    return _REASONS.get(word)


def _detail(untrusted: dict[str, Any]) -> str:
    if untrusted.get("signal") is not None:
        return f"signal {untrusted['signal']}"
    return f"status {untrusted['status']}" if untrusted.get("status") else ""


# What QEMU says in good order: a fork's guest gave a page back, which is kept as it is meant; and a network card of one queue,
# which has nothing to steer.
_IDLE_WORDS = ("Discarding RAM with readonly files", "Issue while setting TUNSETSTEERINGEBPF")


def _worth_saying(words: str) -> str:
    """Without what nobody has to do with."""
    return "".join(line for line in words.splitlines(keepends=True) if not any(idle in line for idle in _IDLE_WORDS))


def read_exit(folder: Path) -> End:
    """The keeper's last record, cleaned; it stays empty when the keeper itself is killed, or the host goes down.

    Raises FileNotFoundError when there is none: nothing came to life in the run folder, or who settled it is taking that down.
    """
    from insula.model.text import clean

    path = folder / names.RUN / names.EXIT
    at = path.stat().st_mtime
    untrusted = _read_json(path)
    reason, detail = _reason(untrusted), _detail(untrusted)
    if reason is None and not path.exists():
        raise FileNotFoundError(path)
    if reason is None:
        reason, detail = "killed", "its keeper ended without saying why (killed, or the host went down)"
    return End(
        reason=reason,
        at=at,
        detail=clean(detail)[:500],
        last_words=_worth_saying(clean(str(untrusted.get("last_words", "")), lines=True))[-2000:],
    )


def end_of(folder: Path) -> End:
    """Why a machine that is no more ended, also when nobody left a word of it."""
    return last_end(folder) or End(reason="killed", at=folder.stat().st_mtime, detail="it ended before its keeper came to life")
