"""Do one request and die by signal 9 on the way: `python -m tests.faults.victim HOME STEP VERB NAME`.

STEP counts from 1 the steps the verb tells of; as ``c1``, ``c2``… it counts the changes it is about to make (files made,
renamed, removed, opened for writing; programs started; connections). One that never comes: the request is done to its end.
With an ``i`` before it (``i1``, ``ic1``) the signal is that of Ctrl-C, and the status 130 as a command line's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from insula.client.local import LocalClient
from insula.model import requests
from insula.model.spec import MachineSpec
from insula.model.transfer import Transfer
from insula.operations.operation import Progress

_SPEC = MachineSpec(memory=128 << 20, network="none")


def request_for(verb: str, name: str, machine_id: str = "") -> requests.Request:
    """The request a test calls ``verb``; some name a machine by its id."""
    made: dict[str, requests.Request] = {
        "create": requests.CreateMachine(image="tiny", name=name, spec=_SPEC),
        "run": requests.RunMachine(image="tiny", name=name, spec=_SPEC),
        "run-ephemeral": requests.RunMachine(image="tiny", name=name, spec=_SPEC, ephemeral=True, attached=True),
        "start": requests.StartMachine(name=name),
        "stop": requests.StopMachine(name=name),
        "restart": requests.RestartMachine(name=name),
        "pause": requests.PauseMachine(name=name),
        "resume": requests.ResumeMachine(name=name),
        "rename": requests.RenameMachine(name=name, new_name=f"{name}-x"),
        "delete": requests.DeleteMachine(name=name, force=True),
        "delete-stopped": requests.DeleteMachine(name=name),
        "snapshot-import": requests.ImportSnapshot(name=name),
        "merge": requests.MergeLayers(id=machine_id),
    }
    return made[verb]


# Audit events (PEP 578; the library reference lists them) that stand for a change.
_CHANGES = frozenset(
    "os.rename os.mkdir os.link os.remove os.rmdir os.chmod os.truncate subprocess.Popen socket.bind socket.connect".split()
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Countdown:
    """Gets ``number`` at the ``last`` call of `count`."""

    def __init__(self, last: int, number: signal.Signals) -> None:
        self._left = last
        self._number = number

    def count(self, what: str) -> None:
        os.write(1, f"{what}\n".encode())
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def _count_changes(countdown: _Countdown, home: Path) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            inside = isinstance(path, (str, bytes)) and os.fsdecode(path).startswith(str(home))
            if not inside or not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event not in _CHANGES:
            return
        countdown.count(f"{event} {arguments[0]!r:.100}")

    sys.addaudithook(hook)


def _streams(home: Path, verb: str, files: contextlib.ExitStack) -> Transfer | None:
    """A snapshot to be imported lies beside the home."""
    if verb != "snapshot-import":
        return None
    return Transfer(files.enter_context((home.parent / "snapshot").open("rb")))


def main() -> None:
    home, step, verb, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    number = signal.SIGINT if step.startswith("i") else signal.SIGKILL
    step = step.removeprefix("i")
    countdown = _Countdown(int(step.removeprefix("c")), number)
    if step.startswith("c"):
        _count_changes(countdown, home)

    def listener(progress: Progress) -> None:
        if not step.startswith("c"):
            countdown.count(progress.step)

    try:
        with contextlib.ExitStack() as files:
            LocalClient(home).do(
                request_for(verb, name, os.environ.get("VICTIM_ID", "")), _streams(home, verb, files), listener=listener
            )
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
