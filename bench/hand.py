"""A machine by hand: an overlay made by qemu-img, a QEMU command written down here, and a bare client of the agent's port.

The machine type, CPU model, memory and devices are those of Insula's own board, so that guests find the same hardware.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from insula.guest import wire
from insula.guest.wire import Frame, FrameReader
from insula.images.record import Image
from insula.store.machines import BoardRecord

_PATIENCE: Final = 300.0  # seconds for anything at all
_MEMORY: Final = 512 << 20
_SIZE: Final = 10 << 30
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_SERIAL_PORT: Final = 2  # number of the bare port


@dataclass(frozen=True)
class HandCard:
    """A network card: what follows ``-netdev``, and its address. ``enter``: the first words of a command that runs where the
    links are that it names."""

    netdev: str = "user,id=net0"
    mac: str = "52:54:00:12:34:56"
    enter: tuple[str, ...] = ()


_PLAIN: Final = HandCard()


def qemu_command(folder: Path, image: Image, board: BoardRecord, card: HandCard = _PLAIN) -> list[str]:
    """The command; its sockets and the overlay ``disk.qcow2`` lie in ``folder``. Pure."""
    words = [*card.enter, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc"]
    words += ["-sandbox", _SANDBOX, "-boot", "strict=on"]
    words += ["-machine", f"{board.machine},memory-backend=m,smm=off,vmport=off,hpet=off,dump-guest-core=off,mem-merge=off"]
    words += ["-accel", "tcg,thread=multi,tb-size=128" if board.accelerator == "tcg" else board.accelerator]
    words += ["-cpu", board.cpu, "-smp", "cpus=1,maxcpus=8,sockets=8,cores=1,threads=1"]
    words += ["-m", "size=512M,slots=8,maxmem=17408M", "-object", f"memory-backend-ram,id=m,size={_MEMORY}"]
    words += ["-object", "rng-builtin,id=rng0", "-object", "throttle-group,id=limit"]
    disk = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={folder}/disk.qcow2"
    unsafe = "discard=unmap,detect-zeroes=unmap,cache.direct=off,cache.no-flush=on"
    words += ["-blockdev", f"{disk},{unsafe}"]
    words += ["-blockdev", "driver=throttle,node-name=limited,throttle-group=limit,file=disk,discard=unmap"]
    for name in ("monitor", "agent", "console", "bare"):
        words += ["-chardev", f"socket,id={name},path={folder}/{name}.sock,server=on,wait=off"]
    words += ["-mon", "chardev=monitor,mode=control", "-netdev", card.netdev]
    for index in range(8):
        words += ["-device", f"pcie-root-port,id=rp{index},chassis={index + 1},bus=pcie.0,addr=0x10.{index},multifunction=on"]
    words += ["-device", "virtio-serial-pci,id=serial0,bus=pcie.0,addr=0x2,disable-legacy=on,max_ports=8"]
    words += ["-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent,name=org.insula.agent"]
    words += ["-device", f"virtserialport,bus=serial0.0,nr={_SERIAL_PORT},chardev=bare,name=bare"]
    words += ["-device", "isa-serial,chardev=console"]
    words += ["-device", "virtio-rng-pci,bus=pcie.0,addr=0x3,disable-legacy=on,rng=rng0"]
    words += ["-device", "virtio-balloon-pci,bus=pcie.0,addr=0x4,disable-legacy=on,free-page-reporting=on,deflate-on-oom=on"]
    words += ["-device", "pvpanic-pci,bus=pcie.0,addr=0x5", "-device", "vmgenid,guid=auto"]
    words += ["-device", "virtio-blk-pci,bus=pcie.0,addr=0x8,disable-legacy=on,drive=limited,serial=root,bootindex=1"]
    words += ["-device", f"virtio-net-pci,bus=rp0,addr=0x0,netdev=net0,mac={card.mac},romfile="]
    if image.boot == "direct":
        words += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.cmdline]
    return words


class AgentClient:
    """A bare client of a guest's agent, at the other end of ``connection``."""

    def __init__(self, connection: socket.socket) -> None:
        self._agent = connection
        self._reader = FrameReader()
        self._last = 0

    def greet(self) -> None:
        """Begin a life: what is sent lies in the socket until the agent opens its port."""
        nonce = os.urandom(16)
        self._agent.sendall(wire.encode_sync(nonce))
        held = b""
        while (found := wire.find_hello(held, nonce)) is None:
            held += self._receive()
        assert found[0].version == wire.VERSION

    def begin(self, *argv: str, given: bytes = b"") -> int:
        """Start a program in the guest, whose input is ``given``, a window's worth at most; the number of its channel."""
        assert len(given) <= wire.WINDOW
        self._last += 1
        request = wire.encode_fields([("verb", "exec"), ("argv", argv)])
        pieces = [given[at : at + wire.PAYLOAD_MAX] for at in range(0, len(given), wire.PAYLOAD_MAX)]
        frames = [Frame(wire.OPEN, self._last, request), *(Frame(wire.DATA, self._last, piece) for piece in pieces)]
        self._agent.sendall(b"".join(wire.encode_frame(frame) for frame in [*frames, Frame(wire.EOF, self._last)]))
        return self._last

    def next_frame(self, channel: int) -> list[Frame]:
        """What came for ``channel``, at least one frame."""
        while True:
            frames = [frame for frame in self._reader.feed(self._receive()) if frame.channel == channel]
            if frames:
                return frames

    def end(self, channel: int) -> bytes:
        """Wait for the end of a program, which must have succeeded; what it wrote."""
        words = b""
        while True:
            for frame in self.next_frame(channel):
                if frame.type == wire.DATA:
                    words += frame.payload
                if frame.type == wire.RESULT:
                    answer = wire.decode_fields(frame.payload)
                    assert "error" not in answer, answer
                    assert answer.number("code") == 0, words.decode(errors="replace")
                    return words

    def wait(self, *argv: str, given: bytes = b"") -> bytes:
        """Run a program and wait for its end; what it wrote."""
        return self.end(self.begin(*argv, given=given))

    def fileno(self) -> int:
        """Of the connection."""
        return self._agent.fileno()

    def close(self) -> None:
        self._agent.close()

    def _receive(self) -> bytes:
        data = self._agent.recv(262_144)
        assert data, "QEMU by hand ended"
        return data


class HandMachine(AgentClient):
    """A running machine; ``folder`` must be empty. A context manager: at its end QEMU is killed."""

    def __init__(self, folder: Path, image: Image, board: BoardRecord, card: HandCard = _PLAIN) -> None:
        self._folder = folder
        disk = str(folder / "disk.qcow2")
        backing = ("-b", str(image.root_layer), "-F", "qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, disk, str(_SIZE)], check=True)
        # In a session of its own, as whoever lets it stay starts it, and as ours is: kernels share CPUs out by sessions.
        command = qemu_command(folder, image, board, card)
        self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            super().__init__(self._connect("agent"))
            self.bare = self._connect("bare")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> HandMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _connect(self, name: str) -> socket.socket:
        """Connect as soon as QEMU listens."""
        path = str(self._folder / f"{name}.sock")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_PATIENCE)
        deadline = time.monotonic() + _PATIENCE
        while self._qemu.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(path)
                return connection
            time.sleep(0.002)  # nothing tells when the socket is there
        raise AssertionError(f"QEMU by hand does not listen on {path}")
