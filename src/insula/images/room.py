"""The closed room in which an image is put together: a scratch folder, and a namespace that owns all in it.

Foreign code (package scripts, recipe commands) and everything that touches what it made runs in here; what comes out
are streams: lines of progress, and archives that are read as untrusted.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from insula.errors import ChildFailed, HostLacks, InsulaError
from insula.host.namespaces import confined, hand_over, package_namespace, remove_handed_over
from insula.host.process import Child, spawn
from insula.host.uplink import Uplink, uplink
from insula.images.progress import Watcher
from insula.model.text import clean

_LOOK = 200  # ms between two looks at whether the caller gave up
_LAST_LINES = 40
_LONGEST_LINE = 500  # characters
_ENVIRONMENT: Final = {"HOME": "/root", "TMPDIR": "/tmp", "DEBIAN_FRONTEND": "noninteractive", "TZ": "UTC"}  # noqa: S108 - the room's own /tmp


class Room:
    """``with Room.open(folder, epoch, watcher) as room``: the folder is the room's ``/work``."""

    def __init__(self, folder: Path, namespace: int, link: Uplink, epoch: int, watcher: Watcher) -> None:
        self.folder = folder
        self._namespace = namespace
        self._link = link
        self._environment = _ENVIRONMENT | {"SOURCE_DATE_EPOCH": str(epoch)}
        self._watcher = watcher

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, epoch: int, watcher: Watcher) -> Iterator[Room]:
        """Make ``folder`` a room. It and all in it are deleted at the end."""
        folder.mkdir(mode=0o755)
        try:
            hand_over(folder)
            with package_namespace() as namespace, uplink(namespace) as link:
                if link.why:
                    watcher.say("preparing", 0.0, f"package scripts share this host's network: {link.why}")
                yield cls(folder, namespace, link, epoch, watcher)
        finally:
            remove_handed_over(folder)

    @property
    def why_not_apart(self) -> str:
        """Why the room shares this host's network; empty when it has one of its own."""
        return self._link.why

    def run(
        self,
        argv: Sequence[str],
        *,
        step: str,
        fraction: float,
        data: bytes | None = None,
        measure: Callable[[str], float] | None = None,
    ) -> None:
        """Run ``argv`` in the room to its end, reporting the lines it says.

        ``data`` is what it reads from its standard input; ``measure`` tells from a line how much of the whole is done. Raises
        Interrupted, ChildFailed with its last lines, or HostLacks when those say that the disk is full or the archive cannot be
        reached or trusted.
        """
        self._watcher.say(step, fraction)
        read_end, write_end = os.pipe()
        with _stdin(data) as stdin:
            child = self._spawn(argv, stdin=stdin, stdout=write_end, stderr=write_end)
        os.close(write_end)
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with child, _killed_on_error(child), open(read_end, "rb", buffering=0) as stream:
            for line in self._lines(stream, child):
                last.append(line)
                done = measure(line) if measure else fraction
                if is_worth_telling(line):
                    self._watcher.say(step, done, line)
            status = child.wait()
        if status:
            raise failure(step, argv, status, list(last))

    def script(self, text: str, *words: str, step: str, fraction: float, data: bytes | None = None) -> None:
        """Run a shell script of ours in the room; ``words`` are its ``$1``…. Raises as ``run``."""
        self.run(["sh", "-euc", text, "sh", *words], step=step, fraction=fraction, data=data)

    @contextlib.contextmanager
    def reading(self, argv: Sequence[str], *, step: str) -> Iterator[BinaryIO]:
        """The standard output of ``argv``, to be read to its end. Raises ChildFailed when the program failed."""
        read_end, write_end = os.pipe()
        child = self._spawn(argv, stdin=None, stdout=write_end, stderr=None)
        os.close(write_end)
        with child:
            with _killed_on_error(child), open(read_end, "rb", buffering=1 << 20) as stream:
                yield stream
            status = child.wait()
        if status:
            raise failure(step, argv, status, [])

    def _spawn(self, argv: Sequence[str], *, stdin: int | None, stdout: int, stderr: int | None) -> Child:
        streams = {name: value for name, value in (("stdin", stdin), ("stderr", stderr)) if value is not None}
        # Detached: a package script must not reach the caller's terminal, and Ctrl-C is for us to handle.
        return spawn(
            confined(self._namespace, argv, self._link.network, self._link.resolver),
            env=self._environment,
            cwd=self.folder,
            stdout=stdout,
            pass_fds=[self._namespace, *([self._link.network] if self._link.network is not None else [])],
            detached=True,
            **streams,
        )

    def _lines(self, stream: BinaryIO, child: Child) -> Iterator[str]:
        """The lines that come, until the program and everything it started closed the pipe or ended."""
        pending = b""
        poller = select.poll()
        poller.register(stream, select.POLLIN)
        poller.register(child, select.POLLIN)
        while True:
            ready = dict(poller.poll(_LOOK))
            self._watcher.check()
            if stream.fileno() in ready:
                chunk = stream.read(65536)
                *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
                yield from (shown for line in lines if (shown := _shown(line)))
                if chunk:
                    continue
                break
            if ready:
                break
        if shown := _shown(pending):
            yield shown


@contextlib.contextmanager
def _killed_on_error(child: Child) -> Iterator[None]:
    """Nothing in a room is worth waiting for once we give up: its first process is killed, and all others go with it."""
    try:
        yield
    except BaseException:
        child.signal(signal.SIGKILL)
        raise


@contextlib.contextmanager
def _stdin(data: bytes | None) -> Iterator[int | None]:
    """A descriptor from which ``data`` can be read: a file in memory, so that nobody must feed a pipe."""
    if data is None:
        yield None
        return
    descriptor = os.memfd_create("insula-room", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _shown(untrusted_line: bytes) -> str:
    """A line of a package script, made safe for a terminal or a log."""
    return clean(untrusted_line.replace(b"\t", b" ").strip(), longest=_LONGEST_LINE)


_NO_SPACE: Final = ("No space left on device", "Disk quota exceeded", "enough free space")
_NO_ARCHIVE: Final = ("Temporary failure resolving", "Could not resolve", "ould not connect", "Unable to connect", "unreachable")
_NO_TRUST: Final = ("NO_PUBKEY", "is not signed", "BADSIG", "EXPKEYSIG", "The following signatures couldn't be verified")

_UNKNOWN_PACKAGE: Final = re.compile(
    r"Unable to locate package |Couldn't find any package |has no installation candidate|^Version '.*' for '.*' was not found"
)
_TELLING: Final = ("E:", "error", "cp:", "tar:", "mke2fs:", "dpkg: error")
# mmdebstrap's words around the ones that say why.
_AROUND: Final = re.compile(
    r"[IW]: |E: (setup failed|apt \w+ failed|command failed|apt-get .* failed$|.* failed: E: |mmdebstrap failed)"
)


def is_worth_telling(line: str) -> bool:
    """Whether a line is news for who waits. Warnings of package tools about the room are not; they stay in an error's output."""
    return not line.startswith(("W: ", "dpkg: warning"))


def failure(step: str, argv: Sequence[str], status: int, lines: list[str]) -> InsulaError:
    """The error for a program of the room that failed after saying ``lines``."""
    said = "\n".join(lines)
    if any(words in said for words in _NO_SPACE):
        return HostLacks(
            f"no space left on the disk while {step}",
            code="no_space",
            hint="free some space, or set INSULA_HOME to a folder on another disk",
        )
    if any(words in said for words in _NO_TRUST):
        return HostLacks(
            "the package archive's signature could not be verified",
            code="archive_untrusted",
            hint="run: apt-get install debian-archive-keyring",
        )
    if any(words in said for words in _NO_ARCHIVE):
        return HostLacks(
            "the package archive cannot be reached", code="archive_unreachable", hint="look at the network and at apt's sources"
        )
    why = _reason(lines)
    unknown = _UNKNOWN_PACKAGE.search(why) is not None
    return ChildFailed(
        f"{step} failed: {why}" if why else f"{step} failed with status {status} and said nothing",
        command=shlex.join(argv),
        status=status,
        output="" if unknown else said,
        code="unknown_package" if unknown else "build_failed",
        hint="correct the recipe's packages, or its suite" if unknown else None,
    )


def _reason(lines: list[str]) -> str:
    """The line that says why: the first complaint, for what follows are complaints about it; else the last that was said."""
    inner = [line for line in lines if not _AROUND.match(line)]
    telling = [line for line in inner if line.startswith(_TELLING)]
    chosen = telling[:1] or inner[-1:] or lines[-1:]
    return chosen[0].removeprefix("E: ") if chosen else ""
