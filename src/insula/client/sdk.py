"""The SDK's nouns: what `import insula` gives.

with insula.run("debian") as machine:
    print(machine.exec("uname", "-a").stdout)
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from insula.client.local import LocalClient
from insula.errors import GuestError, NotFound
from insula.model import requests
from insula.model.spec import Firmware, MachineSpec, Network
from insula.model.units import parse_size

if TYPE_CHECKING:
    from insula.guest.link import Link
    from insula.model.status import MachineDetails, MachineStatus
    from insula.operations.image import ImageStatus
    from insula.operations.operation import Progress

Size = int | str


class Shape(TypedDict, total=False):
    """A machine's shape as people write it: sizes in bytes, or as text like ``1G``. What is left out has its default."""

    cpus: int
    memory: Size
    disk: Size
    network: Network
    firmware: Firmware


class ExecResult:
    """How a command in a guest ended. ``code`` is as a shell tells it: 128 + n for a signal."""

    __slots__ = ("argv", "code", "stderr_bytes", "stdout_bytes")

    def __init__(self, argv: tuple[str, ...], code: int, stdout: bytes, stderr: bytes) -> None:
        self.argv = argv
        self.code = code
        self.stdout_bytes = stdout
        self.stderr_bytes = stderr

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are no UTF-8 become U+FFFD (``stdout_bytes`` has them as they were)."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    def check(self) -> ExecResult:
        """Itself. Raises GuestError (``command_failed``) when the code is not 0."""
        if self.code != 0:
            last = self.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise GuestError(f"'{self.argv[0]}' failed in the guest with code {self.code}: {last[0]}", code="command_failed")
        return self

    def __repr__(self) -> str:
        return f"ExecResult({self.argv!r}, code={self.code})"


class Machine:
    """One machine, by name. As a context manager it is deleted on the way out if it was run without a name."""

    def __init__(self, client: LocalClient, name: str, *, temporary: bool = False, lease: Link | None = None) -> None:
        self._client = client
        self._temporary = temporary
        self._lease = lease
        self.name = name

    def __repr__(self) -> str:
        return f"Machine({self.name!r})"

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._temporary:
            with contextlib.suppress(NotFound):  # it ended by itself, and was deleted then
                self.delete(force=True)

    # -- life ---------------------------------------------------------------------------------------------------------------
    @property
    def status(self) -> MachineStatus:
        """How it is right now."""
        return self.show()

    @property
    def state(self) -> str:
        """``stopped``, ``starting``, ``running``, ``paused`` or ``broken``."""
        return str(self.status.state)

    def show(self) -> MachineDetails:
        """All that is known of it."""
        details: MachineDetails = self._client.do(requests.ShowMachine(name=self.name))
        return details

    def start(self, timeout: float = 300.0) -> Machine:
        """Boot it and wait until its agent answers, ``timeout`` seconds at most."""
        self._client.do(requests.StartMachine(name=self.name, timeout=timeout))
        return self

    def stop(self, *, force: bool = False, timeout: float = 60.0) -> Machine:
        """Shut it down; ``force`` pulls the plug."""
        self._client.do(requests.StopMachine(name=self.name, force=force, timeout=timeout))
        return self

    def restart(self, *, force: bool = False, timeout: float = 60.0) -> Machine:
        self._client.do(requests.RestartMachine(name=self.name, force=force, timeout=timeout))
        return self

    def pause(self) -> Machine:
        self._client.do(requests.PauseMachine(name=self.name))
        return self

    def resume(self) -> Machine:
        self._client.do(requests.ResumeMachine(name=self.name))
        return self

    def rename(self, new_name: str) -> Machine:
        self._client.do(requests.RenameMachine(name=self.name, new_name=new_name))
        self.name = new_name
        return self

    def delete(self, *, force: bool = False) -> None:
        """Delete it with its disks."""
        try:
            self._client.do(requests.DeleteMachine(name=self.name, force=force))
        except NotFound:
            self._drop_lease()
            raise
        self._drop_lease()

    def _drop_lease(self) -> None:
        if self._lease is not None:
            self._lease.close()

    # -- inside -------------------------------------------------------------------------------------------------------------
    def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,  # noqa: A002 - the name that subprocess.run has taught everybody
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        check: bool = False,
    ) -> ExecResult:
        """Run a command in the guest and keep its output.

        ``check`` raises GuestError when it fails. Raises GuestError (``command_not_found`` …), AgentAbsent, WrongState.
        """
        from insula.client.streams import MemoryStreams

        data = input.encode() if isinstance(input, str) else input
        streams = MemoryStreams(data)
        request = requests.ExecMachine(
            name=self.name, argv=argv, env=tuple(f"{key}={value}" for key, value in (env or {}).items()), user=user, cwd=cwd
        )
        status = self._client.do(request, streams)
        result = ExecResult(argv, status.shell_code, streams.output, streams.errors)
        return result.check() if check else result

    def put(self, source: str | Path | Iterable[str | Path], destination: str) -> None:
        """Copy files or folders of this computer into the guest, as ``cp -r`` would."""
        from insula.client.files import put

        put(self._client, self.name, [source] if isinstance(source, (str, Path)) else list(source), destination)

    def get(self, source: str | Iterable[str], destination: str | Path) -> None:
        """Copy files or folders of the guest to this computer, as ``cp -r`` would."""
        from insula.client.files import get

        get(self._client, self.name, [source] if isinstance(source, str) else list(source), destination)

    def logs(self) -> bytes:
        """What the guest printed on its console, as far as it was kept."""
        from insula.client.streams import MemoryStreams

        streams = MemoryStreams(None)
        self._client.do(requests.ReadLogs(name=self.name), streams)
        return streams.output

    def events(self) -> list[dict[str, Any]]:
        """What happened to it, oldest first."""
        import json

        from insula.client.streams import MemoryStreams

        streams = MemoryStreams(None)
        self._client.do(requests.ReadEvents(name=self.name), streams)
        return [json.loads(line) for line in streams.output.splitlines()]


class Insula:
    """A connection to Insula on this computer. ``home`` is the state folder (default: the command line's)."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.client = LocalClient(Path(home) if home is not None else None)

    def run(
        self,
        image: str,
        *,
        name: str = "",
        timeout: float = 300.0,
        progress: Callable[[Progress], None] | None = None,
        **shape: Unpack[Shape],
    ) -> Machine:
        """Make a machine from ``image`` (building it if need be), start it and wait until it answers.

        Without ``name`` the machine is temporary: it is deleted at the end of a ``with`` block and, at the latest, when this
        process ends. ``shape``: cpus, memory and disk (bytes, or text like ``1G``), network, firmware.
        """
        request = requests.RunMachine(
            image=image, name=name, spec=make_spec(**shape), ephemeral=not name, attached=not name, timeout=timeout
        )
        result = self.client.do(request, listener=progress)
        return Machine(self.client, result.machine.name, temporary=not name, lease=result.lease)

    def create(self, image: str, *, name: str = "", **shape: Unpack[Shape]) -> Machine:
        """Make a stopped machine; arguments as for `run`."""
        status = self.client.do(requests.CreateMachine(image=image, name=name, spec=make_spec(**shape)))
        return Machine(self.client, status.name)

    def get(self, name: str) -> Machine:
        """An existing machine. Raises NotFound."""
        self.client.do(requests.ShowMachine(name=name))
        return Machine(self.client, name)

    def list(self) -> list[MachineStatus]:
        """All machines, as `insula list` shows them."""
        machines: list[MachineStatus] = self.client.do(requests.ListMachines())
        return machines

    def build(
        self, recipe: str, *, text: str = "", refresh: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> ImageStatus:
        """Build an image from a built-in recipe, or from a recipe's TOML ``text``."""
        built: ImageStatus = self.client.do(requests.BuildImage(recipe=recipe, text=text, refresh=refresh), listener=progress)
        return built

    def images(self) -> builtins.list[ImageStatus]:
        """All images, and the built-in recipes that are not built yet (their digest is empty)."""
        images: builtins.list[ImageStatus] = self.client.do(requests.ListImages())
        return images


def make_spec(
    *, cpus: int = 1, memory: Size = "512M", disk: Size = "10G", network: str = "nat", firmware: str = "bios"
) -> MachineSpec:
    """A machine's shape from what people write. Raises UsageError for an impossible one."""
    import msgspec

    from insula.errors import UsageError

    try:
        return msgspec.convert(
            {"cpus": cpus, "memory": _bytes(memory), "disk": _bytes(disk), "network": network, "firmware": firmware}, MachineSpec
        )
    except msgspec.ValidationError as cause:
        raise UsageError(f"not a possible shape: {cause}", code="bad_shape") from cause


def _bytes(size: Size) -> int:
    return size if isinstance(size, int) else parse_size(size)


def connect(home: str | Path | None = None) -> Insula:
    """Insula on this computer."""
    return Insula(home)


def run(
    image: str,
    *,
    name: str = "",
    timeout: float = 300.0,
    progress: Callable[[Progress], None] | None = None,
    **shape: Unpack[Shape],
) -> Machine:
    """`connect().run(…)`: make a machine, start it and wait until it answers. See `Insula.run`."""
    return connect().run(image, name=name, timeout=timeout, progress=progress, **shape)
