"""The holder of a fabric (`insula-keeper hold`, native/keeper/hold.c), and what one asks of it.

It keeps a network namespace, hands out descriptors of and from it, and is the parent of the programs that serve it. A fabric is
there while something answers at the holder's socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import ChildFailed, HostLacks
from insula.host.native import native_path
from insula.host.process import run
from insula.host.sockets import connect_unix, listen_unix

_PATIENCE: Final = 20.0  # seconds; an answer takes milliseconds, ending all programs a few seconds at most
_ANSWER: Final = 1 << 17
_DESCRIPTORS: Final = 2
# linux/capability.h: bind to low ports, administer the network, raw sockets.
SERVER_RIGHTS: Final = 1 << 10 | 1 << 12 | 1 << 13
_TUN: Final = "/dev/net/tun"
ROOM: Final = "/n"  # where a program in a room sees the folder it is shown


class Spaces(msgspec.Struct, frozen=True):
    """Descriptors of a network namespace and of the user namespace that owns it (None: the host's own)."""

    net: int
    user: int | None = None

    def descriptors(self) -> tuple[int, ...]:
        return (self.net,) if self.user is None else (self.net, self.user)

    def enter(self) -> list[str]:
        """The first words of a command that runs in them; it must be given `descriptors`."""
        owner = [] if self.user is None else [f"--user=/proc/self/fd/{self.user}", "--preserve-credentials"]
        return ["nsenter", *owner, f"--net=/proc/self/fd/{self.net}", "--"]

    def close(self) -> None:
        for descriptor in self.descriptors():
            os.close(descriptor)


class Program(msgspec.Struct, frozen=True):
    """What a holder is to start. ``outside``: in the host's network. ``uid``: of a user of its own (root's holders only).

    ``rights``: a mask of capabilities; None leaves all as they are, and the program in the host's file system. Otherwise it is in
    a room in which it sees the system's programs and ``folder``, as `ROOM`, and no process, and can write nothing.
    """

    argv: tuple[str, ...]
    outside: bool = False
    uid: int | None = None
    rights: int | None = None
    folder: Path | None = None

    def words(self, *, held: bool = False) -> list[str]:
        """``held``: to a filter of system calls that goes along."""
        where = "outside" if self.outside else "inside"
        uid = "-" if self.uid is None else str(self.uid)
        rights = "-" if self.rights is None else f"{self.rights:x}{'+' * held}"
        folder = "-" if self.folder is None else os.fspath(self.folder)
        return [where, uid, rights, folder, *self.argv]


class Holder:
    """A connection to a holder. Every call raises HostLacks (``fabric_refused``) when the holder, or the kernel, says no."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid  # of a process inside; only to name its namespaces to a program that wants paths
        self._spaces = _as_spaces(_ask(connection, "namespaces")[1])
        self._lock = threading.Lock()  # one question at a time: what is done side by side asks, too

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The holder stays."""
        self._connection.close()
        self._spaces.close()

    @property
    def spaces(self) -> Spaces:
        """Its namespaces, open as long as this connection."""
        return self._spaces

    def tap(self, name: str) -> int:
        """A descriptor of the tap device ``name``, made now. Frames carry virtio's header (IFF_VNET_HDR), as QEMU likes them.

        Raises HostLacks, with code ``no_tun`` where there is no such device for us.
        """
        try:
            return self._one("tap", name)
        except HostLacks as refusal:
            if _TUN not in refusal.message:
                raise
            hint = f"as root: chmod 666 {_TUN}" if os.path.exists(_TUN) else "as root: modprobe tun"
            raise HostLacks(refusal.message, code="no_tun", hint=hint) from None

    def socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """A socket of the fabric's network."""
        return socket.socket(family, kind, protocol, fileno=self._one("socket", str(family), str(kind), str(protocol)))

    def _ask(self, *words: str, descriptors: Sequence[int] = ()) -> tuple[list[str], list[int]]:
        with self._lock:
            return _ask(self._connection, *words, descriptors=descriptors)

    def _one(self, *words: str) -> int:
        descriptors = self._ask(*words)[1]
        assert len(descriptors) == 1, "a holder answers so many descriptors as it was asked for"
        return descriptors[0]

    def sysctl(self, name: str, value: int | str) -> None:
        """Set ``/proc/sys/net/NAME`` of the fabric."""
        self._ask("sysctl", name, str(value))

    def start(self, name: str, program: Program, *descriptors: int, calls: int | None = None) -> None:
        """Start a program that is known as ``name``: the first descriptor is its output, the others are its 3, 4, … ``calls`` is
        one of the filter of system calls that a program in a room is held to."""
        held = calls is not None and program.rights is not None
        passed = [*descriptors, calls] if held and calls is not None else descriptors
        self._ask("start", name, *program.words(held=held), descriptors=passed)

    def stop(self, name: str) -> None:
        """End a program, and return when it has ended; nothing happens when there is none."""
        self._ask("stop", name)

    def signal(self, name: str, number: int) -> None:
        self._ask("signal", name, str(number))

    def children(self) -> set[str]:
        """The programs that run."""
        return set(self._ask("children")[0])

    def quit(self) -> None:
        """End all programs and the holder. The namespaces go when nobody has anything of them any more."""
        self._ask("quit")


def _ask(connection: socket.socket, *words: str, descriptors: Sequence[int] = ()) -> tuple[list[str], list[int]]:
    """One request; the words after ``ok``, and the descriptors that came along."""
    request = b"\0".join(os.fsencode(word) for word in words) + b"\0"
    try:
        socket.send_fds(connection, [request], list(descriptors))
        answer, received, _, _ = socket.recv_fds(connection, _ANSWER, _DESCRIPTORS)
    except OSError as cause:
        raise HostLacks(f"the networks' holder did not answer: {cause.strerror}", code="fabric_gone", hint=_REPAIR) from cause
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    verdict, *rest = [os.fsdecode(word) for word in answer.split(b"\0")]
    if verdict != "ok":
        what = rest[0] if rest else "the networks' holder has ended"
        raise HostLacks(f"{what} ({words[0]})", code="fabric_refused" if rest else "fabric_gone", hint=_REPAIR)
    return rest, list(received)


_REPAIR: Final = "run: insula network repair"


def _as_spaces(descriptors: Sequence[int]) -> Spaces:
    return Spaces(descriptors[0], descriptors[1] if len(descriptors) > 1 else None)


def _connect(path: Path) -> tuple[socket.socket, list[str], list[int]] | None:
    """A connection to whoever listens at ``path``, and what he says he is."""
    try:
        connection = connect_unix(path, kind=socket.SOCK_SEQPACKET)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    connection.settimeout(_PATIENCE)
    try:
        kind, descriptors = _ask(connection, "hello")
    except HostLacks:
        connection.close()
        return None  # it ended at this very moment
    return connection, kind, descriptors


def connect_holder(path: Path) -> Holder | None:
    """A connection to the holder at ``path``, if there is one."""
    found = _connect(path)
    if found is None:
        return None
    connection, kind, descriptors = found
    if kind[0] != "holder":
        connection.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return Holder(connection, int(kind[1]))


def is_held(path: Path) -> bool:
    """Whether the namespaces of the holder at ``path`` are there: it answers, or what it left inside when it died."""
    found = _connect(path)
    if found is None:
        return False
    found[0].close()
    for descriptor in found[2]:
        os.close(descriptor)
    return True


def start_holder(path: Path, *, own_user: bool, owner: int | None = None) -> tuple[Holder, bool]:
    """Start a holder; nobody else may be at it (hold a lock). Second: whether it goes on with the namespaces of one that died.

    ``own_user``: in a user namespace in which the caller is root. ``owner`` is a descriptor of one that is there, to be in
    instead. Raises HostLacks (``no_fabric``).
    """
    orphan = _connect(path)
    spaces = _take_over(*orphan) if orphan is not None else None
    path.unlink(missing_ok=True)
    words, passed = _spaces_words(spaces, owner) if spaces or owner else (["--own-user"] if own_user else [], [])
    try:
        with contextlib.closing(listen_unix(path, kind=socket.SOCK_SEQPACKET)) as listener:
            _launch(["--listen", str(listener.fileno()), *words], [listener.fileno(), *passed])
    except HostLacks:
        path.unlink(missing_ok=True)
        raise
    finally:
        if spaces is not None:
            spaces.close()
    holder = connect_holder(path)
    if holder is None:
        raise HostLacks("the networks' holder ended at once", code="no_fabric", hint="to see why: insula doctor")
    return holder, spaces is not None


def start_brief_holder(*, own_user: bool) -> Holder:
    """A holder of new namespaces for this one connection: with it all goes, also when we are killed. See `start_holder`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            _launch(["--client", str(theirs.fileno()), *(["--own-user"] if own_user else [])], [theirs.fileno()])
        ours.settimeout(_PATIENCE)
        kind, _ = _ask(ours, "hello")
        return Holder(ours, int(kind[1]))
    except BaseException:
        ours.close()
        raise


def _launch(words: list[str], passed: list[int]) -> None:
    try:
        run([str(native_path("insula-keeper")), "hold", *words], pass_fds=passed, timeout=_PATIENCE)
    except ChildFailed as failure:
        raise HostLacks(
            f"this host does not let us make a network namespace: {failure.output or failure.message}",
            code="no_fabric",
            hint="to see why: insula doctor",
        ) from failure


def _spaces_words(spaces: Spaces | None, owner: int | None) -> tuple[list[str], list[int]]:
    """What tells a holder in which namespaces to be, and the descriptors that go along."""
    user = owner if spaces is None else spaces.user
    named = {"--net": spaces.net if spaces else None, "--user": user}
    given = {word: descriptor for word, descriptor in named.items() if descriptor is not None}
    return [text for word, descriptor in given.items() for text in (word, str(descriptor))], list(given.values())


def _take_over(connection: socket.socket, kind: list[str], descriptors: list[int]) -> Spaces | None:
    """The namespaces of a holder that died, from the one it left inside, who then ends."""
    with connection:
        if kind[0] != "orphan":
            return None
        _ask(connection, "quit")
        return _as_spaces(descriptors)
