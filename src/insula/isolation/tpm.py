"""A machine's TPM: one swtpm process per machine, joined to its QEMU by a socket pair.

swtpm runs in a room of its own (tool.py): the system's programs, no network, a user of its own where we are root, and one place
it can write, the folder its state is in. QEMU speaks to it over the control channel and hands it an end of the data channel.

It ends with its QEMU, however far either came: a swtpm that loses its QEMU before it was given the data channel would wait for
ever, so process 1 of its room reads from a lifeline whose other end QEMU holds, and the room ends with that.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from insula.errors import ChildFailed, HostLacks, InsulaError, MachineEnded
from insula.host.process import find_program, spawn
from insula.isolation.tool import WRITABLE, run_tool, tool_argv, tool_calls
from insula.resources.groups import entering
from insula.store.tpm import MOST_BYTES, hand_over

_PATIENCE: Final = 3.0
_CONTROL: Final = 3  # swtpm takes none of the first three
# Whoever makes the room keeps its own standard output, and closes all else; process 1 keeps its standard input alone. So swtpm is
# the only one at the end of the control channel, and QEMU sees when it is gone.
_ENTER: Final = f'exec "$@" {_CONTROL}>&1 > /dev/null'
_SERVE: Final = f'swtpm "$@" & exec {_CONTROL}>&-; read -r end'
_UNREADABLE: Final = "CMD_INIT"  # what QEMU names when a TPM cannot begin with the state it has


def _words(control: int) -> list[str]:
    state = ["--tpmstate", f"dir={WRITABLE}/0,mode=0600"]
    return ["socket", "--tpm2", *state, "--ctrl", f"type=unixio,clientfd={control}", "--terminate"]


def tpm_argv(folder: Path, uid: int | None, calls: Sequence[int] = ()) -> list[str]:
    """Pure: the command that keeps a TPM 2.0 in ``folder`` for the QEMU at the other end of its standard output, until its
    standard input ends."""
    argv = ["sh", "-c", _SERVE, "tpm", *_words(_CONTROL)]
    room = tool_argv(argv, writable=[folder], uid=uid, largest=MOST_BYTES, lasting=True, calls=calls)
    return ["sh", "-c", _ENTER, "tpm", *room]


def start_tpm(folder: Path, uid: int | None, entrances: Sequence[int] = ()) -> tuple[socket.socket, int]:
    """Start the TPM kept in ``folder``, a new one if that is empty or not there, in the control groups that have these entrances.
    Returns the end of its socket that is for QEMU,
    and a descriptor that QEMU must hold: the TPM ends when that is closed everywhere.

    Raises HostLacks (``program_missing``), OSError.
    """
    if find_program("swtpm") is None:
        raise HostLacks(
            "the machine has a TPM, and the program 'swtpm' is not installed",
            code="program_missing",
            hint="run: apt-get install swtpm",
        )
    hand_over(folder, uid)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ends, lifeline = os.pipe()
    try:
        # Forked off, so that it is nobody's child whose end must be waited for.
        with tool_calls() as calls:
            words = entering(entrances, ["setsid", "--fork", *tpm_argv(folder, uid, calls)])
            with spawn(words, stdin=ends, stdout=theirs.fileno(), pass_fds=[*calls, *entrances]) as starter:
                starter.wait(_PATIENCE)
    except BaseException:
        ours.close()
        os.close(lifeline)
        raise
    finally:
        theirs.close()
        os.close(ends)
    return ours, lifeline


def has_ended(end: socket.socket) -> bool:
    """Whether the swtpm at the other side of ``end`` is gone."""
    poller = select.poll()
    poller.register(end, 0)  # a hang-up is always reported
    return bool(poller.poll(0))


def blames_state(cause: InsulaError) -> bool:
    """Whether ``cause`` is QEMU's word that its TPM cannot begin with the state it has."""
    return _UNREADABLE in cause.message


def explain_end(cause: InsulaError, folder: Path, uid: int | None) -> InsulaError:
    """Pure but for one try: the error for a machine that did not start, ``cause``, and whose swtpm has ended, or is about to."""
    if blames_state(cause):
        hint = f"restore a snapshot; or, to begin with a new TPM, remove the folder {folder}"
        return MachineEnded(f"its TPM cannot begin with the state it has: {cause.message}", code="tpm_damaged", hint=hint)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        words = ["swtpm", *_words(theirs.fileno())]
        run_tool(words, writable=[folder], uid=uid, largest=MOST_BYTES, timeout=_PATIENCE, pass_fds=[theirs.fileno()])
    except ChildFailed as failure:
        if failure.output:
            return HostLacks(
                f"swtpm ended at once, so the machine has no TPM: {failure.output.splitlines()[-1]}", code="tpm_failed"
            )
    finally:
        ours.close()
        theirs.close()
    return cause
