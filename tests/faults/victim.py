"""Do one request and die by signal 9 on the way: `python -m tests.faults.victim HOME STEP VERB NAME`.

STEP counts from 1 the steps the verb tells of; as ``c1``, ``c2``… it counts the changes it is about to make (files made,
renamed, removed, opened for writing; programs started; connections; requests to QEMU). One that never comes: the request is
done to its end. With an ``i`` before it (``i1``, ``ic1``) the signal is that of Ctrl-C, and the status 130 as a command line's.

With a letter before it that names somebody else (``q1``, ``Kc7``) that one is killed; the request goes on, to its end or to an
error, whose code is written to standard error, the status being 3: ``q`` and ``k`` are the oldest QEMU and keeper of the
machine NAME, ``Q`` and ``K`` the youngest of any machine.

In the environment: ``VICTIM_ID`` is the id of the machine, for verbs that want that; ``VICTIM_BOUND`` the number of layers beyond
which they are merged; ``VICTIM_PORT`` a port of the host to be published; ``VICTIM_SPARED`` a machine whose QEMU and keeper live.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from insula.client.local import LocalClient
from insula.errors import InsulaError
from insula.model import network_requests, requests
from insula.model.limits import LimitChanges
from insula.model.network import Publish, parse_rule
from insula.model.resource_requests import LimitMachine
from insula.model.spec import MachineSpec
from insula.model.transfer import Transfer
from insula.operations import merge
from insula.operations.operation import Progress

_SPEC = MachineSpec(memory=128 << 20, networks=())
_NETWORK = "den"  # what is attached, detached and deleted


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
        "snapshot": requests.CreateSnapshot(name=name, snapshot="victim"),
        "snapshot-delete": requests.DeleteSnapshot(name=name, snapshot="victim"),
        "restore": requests.RestoreSnapshot(name=name, snapshot="base"),
        "restore-discard": requests.RestoreSnapshot(name=name, snapshot="base", keep=False),
        "fork": requests.ForkMachine(name=name, snapshot="base", pattern=f"{name}-x{{n}}"),
        "fork-running": requests.ForkMachine(name=name, pattern=f"{name}-x{{n}}"),
        "fork-two": requests.ForkMachine(name=name, count=2, pattern=f"{name}-x{{n}}"),
        "suspend": requests.SuspendMachine(name=name),
        "wake": requests.StartMachine(name=name),
        "clone": requests.CloneMachine(name=name, new_name=f"{name}-x1"),
        "clone-full": requests.CloneMachine(name=name, new_name=f"{name}-x1", full=True),
        "warm": requests.WarmImage(image="tiny", spec=_SPEC, refresh=True),
        "grow": LimitMachine(name=name, memory=256 << 20),
        "shrink": LimitMachine(name=name, memory=128 << 20),
        "spare": requests.SetSpares(origin=f"{name}@base", count=1),
    }
    return made[verb] if verb in made else _network_request(verb, name)


def _network_request(verb: str, name: str) -> requests.Request:
    spec = MachineSpec(memory=128 << 20, networks=("nat", _NETWORK))
    port = Publish(int(os.environ.get("VICTIM_PORT", "1")), 80)
    made: dict[str, requests.Request] = {
        "run-networked": requests.RunMachine(image="tiny", name=f"{name}-x1", spec=spec),
        "attach": network_requests.AttachNetwork(name=name, network=_NETWORK),
        "detach": network_requests.DetachNetwork(name=name, network=_NETWORK),
        "publish": network_requests.PublishPorts(name=name, ports=(port,)),
        "unpublish": network_requests.UnpublishPorts(name=name),
        "firewall": network_requests.SetFirewall(name=name, add=(parse_rule("deny to any tcp 81"),)),
        "limit-machine": LimitMachine(name=name, changes=LimitChanges(cpu_shares=500, disk_rate=8 << 20)),
        "limit": network_requests.LimitNetwork(name=name, up=10_000_000, down=10_000_000),
        "unplug": network_requests.SetLink(name=name, network="nat", up=False),
        "network-create": network_requests.CreateNetwork(name=_NETWORK, mode="private"),
        "network-delete": network_requests.DeleteNetwork(name=_NETWORK),
    }
    return made[verb]


# Audit events (PEP 578; the library reference lists them) that stand for a change.
_CHANGES = frozenset(
    "os.rename os.mkdir os.link os.remove os.rmdir os.chmod os.truncate "
    "subprocess.Popen socket.bind socket.connect socket.sendmsg".split()
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Countdown:
    """Does ``fatal`` at the ``last`` call of `count`."""

    def __init__(self, last: int, fatal: Callable[[], None]) -> None:
        self._left = last
        self._fatal = fatal
        self._lock = threading.RLock()  # forks are made side by side; and to kill somebody takes changes, too

    def count(self, what: str) -> None:
        with self._lock:
            self._left -= 1
            if self._left >= 0:
                os.write(1, f"{what}\n".encode())
            if self._left == 0:
                self._fatal()


def _fatal(letter: str, home: Path, name: str) -> Callable[[], None]:
    """What is to happen at the step."""
    if letter not in "qQkK":
        number = signal.SIGINT if letter == "i" else signal.SIGKILL
        return lambda: os.kill(os.getpid(), number)
    program = "qemu" if letter in "qQ" else "keeper"
    folder, oldest = (home, False) if letter in "QK" else (home / "machines" / name, True)
    spared = home / "machines" / os.environ.get("VICTIM_SPARED", "nobody")

    def kill() -> None:
        found = sorted(set(_programs(program, folder)) - set(_programs(program, spared)))
        if found:
            pid = found[0 if oldest else -1][1]
            descriptor = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            select.select([descriptor], [], [], 10)
            os.close(descriptor)

    return kill


def _programs(program: str, folder: Path) -> list[tuple[int, int]]:
    """Start time and pid of all processes called so that hold a file below ``folder`` open (proc(5))."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or program not in (entry / "comm").read_text():
                continue
            if any(os.readlink(link).startswith(f"{folder}/") for link in list((entry / "fd").iterdir())):
                started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                found.append((started, int(entry.name)))
        except OSError:
            continue
    return found


def _count_changes(countdown: _Countdown, home: Path) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            inside = isinstance(path, (str, bytes)) and os.fsdecode(path).startswith(str(home))
            if not inside or not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event not in _CHANGES:
            return
        countdown.count(f"{event} {repr(arguments[0])[-100:]}")

    sys.addaudithook(hook)


def _streams(home: Path, verb: str, files: contextlib.ExitStack) -> Transfer | None:
    """A snapshot to be imported lies beside the home."""
    if verb != "snapshot-import":
        return None
    return Transfer(files.enter_context((home.parent / "snapshot").open("rb")))


def main() -> None:
    home, step, verb, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    letter = step[0] if step[0] in "iqQkK" else ""
    step = step.removeprefix(letter)
    if bound := os.environ.get("VICTIM_BOUND"):
        merge.BOUND = int(bound)  # type: ignore[misc]  # a long chain takes its time to make
    countdown = _Countdown(int(step.removeprefix("c")), _fatal(letter or "-", home, name))
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
    except InsulaError as error:
        print(error.code, file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
