"""Everything Insula can be asked to do: one frozen type per verb (of networks: network_requests.py, of shares of the host:
resource_requests.py). The CLI, the SDK and the tests build nothing else.

A request holds no path of the caller's computer and no stream: those flow beside it (see ``model/streams.py``).
"""

from __future__ import annotations

import msgspec

from insula.model.limits import Limits
from insula.model.network import Firewall, Publish
from insula.model.spec import MachineSpec


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all requests have in common: they are values, and they can be written down."""


# -- machine ------------------------------------------------------------------------------------------------------------
class CreateMachine(Request, frozen=True):
    """Make a stopped machine from an image. An empty ``name`` asks for a generated one.

    ``addresses``: those wanted on its networks, in their order; an empty one, or none, is for any that is free. ``insecure``:
    leave to run, now and later, without what of its jail this host cannot have.
    """

    image: str
    name: str = ""
    spec: MachineSpec = MachineSpec()
    addresses: tuple[str, ...] = ()
    published: tuple[Publish, ...] = ()
    firewall: Firewall = Firewall()
    limits: Limits = Limits()
    insecure: bool = False
    ephemeral: bool = False
    dry_run: bool = False


class Execution(Request, frozen=True, kw_only=True):
    """What is to be run in a guest; see model/command.py for what the words mean."""

    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    cwd: str = ""
    tty: bool = False
    rows: int = 24
    cols: int = 80


class RunMachine(Execution, frozen=True):
    """Make a machine and start it; then, if ``argv`` is given, run that inside.

    With ``ephemeral`` the machine is deleted when it ends; with ``attached`` as well, it also ends when the caller goes
    away. ``argv`` empty and ``tty``: a login shell. Networks as for `CreateMachine`.
    """

    image: str
    name: str = ""
    spec: MachineSpec = MachineSpec()
    addresses: tuple[str, ...] = ()
    published: tuple[Publish, ...] = ()
    firewall: Firewall = Firewall()
    limits: Limits = Limits()
    insecure: bool = False
    ephemeral: bool = False
    attached: bool = False
    shell: bool = False
    timeout: float = 300.0
    cold: bool = False


class StartMachine(Request, frozen=True):
    """Boot a stopped machine and wait until its agent answers, ``timeout`` seconds at most (0: do not wait).

    A suspended one goes on where it was; with ``cold`` it boots instead, and what its memory held is lost. ``insecure`` gives it
    leave as for `CreateMachine`, or takes it back; None leaves it as it is.
    """

    name: str
    timeout: float = 300.0
    cold: bool = False
    insecure: bool | None = None


class StopMachine(Request, frozen=True):
    """Ask the guest to shut down, then press its power button, then end it; each step waits ``timeout`` seconds."""

    name: str
    timeout: float = 60.0
    force: bool = False


class RestartMachine(Request, frozen=True):
    name: str
    timeout: float = 60.0
    force: bool = False


class PauseMachine(Request, frozen=True):
    name: str


class ResumeMachine(Request, frozen=True):
    name: str


class DeleteMachine(Request, frozen=True):
    name: str
    force: bool = False
    dry_run: bool = False


class SettleMachine(Request, frozen=True):
    """A machine has ended: note why, and clean up. It is named by its id, since it may have been renamed meanwhile."""

    id: str


class MergeLayers(Request, frozen=True):
    """Make a machine's chains of layers short again, if they are not. It is named by its id, as by `SettleMachine`."""

    id: str


class RenameMachine(Request, frozen=True):
    name: str
    new_name: str


class SuspendMachine(Request, frozen=True):
    """Write the machine's memory to disk and end it; its next start goes on from there."""

    name: str


class CloneMachine(Request, frozen=True):
    """Make a stopped machine from a stopped one: sharing layers with it, or with ``full`` a copy of its own."""

    name: str
    new_name: str
    full: bool = False


class ListMachines(Request, frozen=True):
    pass


class ShowMachine(Request, frozen=True):
    name: str


class ShowSecurity(Request, frozen=True):
    """Which layers of its jail hold for a running machine."""

    name: str


# -- inside -------------------------------------------------------------------------------------------------------------
class ExecMachine(Execution, frozen=True):
    """Run a program in the guest. ``wait`` seconds are granted to an agent that does not answer yet."""

    name: str
    argv: tuple[str, ...]
    wait: float = 0.0


class OpenConsole(Request, frozen=True):
    """Type on the console (with ``input``) until the input ends, and see what it says; without it see what comes.

    Without ``follow`` it ends with what was printed already.
    """

    name: str
    follow: bool = True
    input: bool = True


class CopyIn(Request, frozen=True):
    """Write the stream of entries that flows beside, whose roots have these ``names``, to a path of the guest."""

    name: str
    destination: str
    names: tuple[str, ...]


class CopyOut(Request, frozen=True):
    """Read paths of the guest as a stream of entries."""

    name: str
    sources: tuple[str, ...]


class ReadLogs(Request, frozen=True):
    name: str
    follow: bool = False


class ReadEvents(Request, frozen=True):
    """Events of one machine, or of all when ``name`` is empty. ``whole``: also what keeper and QEMU said of the same."""

    name: str = ""
    follow: bool = False
    whole: bool = False


# -- rewind --------------------------------------------------------------------------------------------------------------
class CreateSnapshot(Request, frozen=True):
    """Take a snapshot. An empty ``snapshot`` asks for a generated name."""

    name: str
    snapshot: str = ""
    description: str = ""


class ListSnapshots(Request, frozen=True):
    name: str


class ShowSnapshot(Request, frozen=True):
    name: str
    snapshot: str


class RestoreSnapshot(Request, frozen=True):
    """Bring the machine back to the snapshot. With ``keep``, what it was until now is kept as ``before-restore``. ``disks``: only
    its disks, and the machine is off then."""

    name: str
    snapshot: str
    keep: bool = True
    disks: bool = False


class DeleteSnapshot(Request, frozen=True):
    name: str
    snapshot: str


class ExportSnapshot(Request, frozen=True):
    """Write a snapshot, memory included, to the file that flows beside (model/transfer.py), sealed if that knows a passphrase."""

    name: str
    snapshot: str


class ImportSnapshot(Request, frozen=True):
    """Take in the snapshot that flows beside as one of the machine ``name``, which is made if there is none. An empty
    ``snapshot``: under the name it had."""

    name: str
    snapshot: str = ""


class ForkMachine(Request, frozen=True):
    """Make ``count`` running machines from a snapshot, or from a running machine as it is now (``snapshot`` empty).

    ``pattern`` names them; ``{n}`` in it counts from 1 (or on from the first free name); empty asks for ``NAME-{n}``.
    ``ephemeral`` and ``attached`` as for `RunMachine`.
    """

    name: str
    snapshot: str = ""
    count: int = 1
    pattern: str = ""
    ephemeral: bool = False
    attached: bool = False
    timeout: float = 60.0


class SetSpares(Request, frozen=True):
    """Have ``count`` spares: forks made ahead of ``origin``, an image (in the shape ``spec``) or MACHINE@SNAPSHOT."""

    origin: str
    count: int
    spec: MachineSpec = MachineSpec()


class ListSpares(Request, frozen=True):
    pass


class FillSpares(Request, frozen=True):
    """Make the spares that are missing of the state with the id ``origin``."""

    origin: str


# -- image --------------------------------------------------------------------------------------------------------------
class BuildImage(Request, frozen=True):
    """Build from a recipe's TOML text (``text``), or from one that comes with Insula (``recipe``)."""

    recipe: str = ""
    text: str | None = None
    refresh: bool = False


class ListImages(Request, frozen=True):
    pass


class ShowImage(Request, frozen=True):
    image: str


class PruneImages(Request, frozen=True):
    """Delete the images that no machine uses and nobody can name any more; with ``named`` also those with a name."""

    named: bool = False
    dry_run: bool = False


class ShowDiskUsage(Request, frozen=True):
    """What holds the disk space: the machines named, or all there is."""

    names: tuple[str, ...] = ()


class ExamineHost(Request, frozen=True):
    """Find out what this host can do; with ``fix``, mend first what can be mended."""

    fix: bool = False


class ProbeJail(Request, frozen=True):
    """Try to get out of the jail that a machine's processes are in."""


class DeleteImage(Request, frozen=True):
    image: str
    dry_run: bool = False


class WarmImage(Request, frozen=True):
    """Boot the image once, if need be, and keep its state just after boot for later `RunMachine` of the same shape."""

    image: str
    spec: MachineSpec = MachineSpec()
    refresh: bool = False


class ListWarmStates(Request, frozen=True):
    pass


class DeleteWarmStates(Request, frozen=True):
    """Delete the warm states of an image, or of all images when ``image`` is empty."""

    image: str = ""


class RefreshWarmState(Request, frozen=True):
    """Make the warm state with this key anew, because it has become old."""

    key: str
