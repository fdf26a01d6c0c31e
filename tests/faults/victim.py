"""Do one request and die by signal 9 at a given step: `python -m tests.faults.victim HOME STEP VERB NAME`.

STEP counts from 1; with a step that never comes the request is done to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from insula.client.local import LocalClient
from insula.model import requests
from insula.model.spec import MachineSpec
from insula.operations.operation import Progress

_SPEC = MachineSpec(memory=128 << 20, network="none")


def request_for(verb: str, name: str) -> requests.Request:
    """The request a test calls ``verb``."""
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
    }
    return made[verb]


def main() -> None:
    home, step, verb, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    seen = 0

    def listener(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        print(progress.step, flush=True)
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    LocalClient(home).do(request_for(verb, name), listener=listener)


if __name__ == "__main__":
    main()
