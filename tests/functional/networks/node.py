"""What runs in each namespace of a `lab`: does there what it is told, a line of JSON at a time. Needs nothing but Python itself.

Given to its Python as text, so that an ordinary user who sees no file of ours can run it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0  # seconds for what must come
ALL = 3  # ETH_P_ALL
_children: list[subprocess.Popen[bytes]] = []
_flows: dict[str, socket.socket] = {}
_sniffers: dict[str, socket.socket] = {}
_got: dict[int, list[list[str]]] = {}


def run(argv: list[str], data: str = "") -> list[Any]:
    done = subprocess.run(argv, input=data.encode(), capture_output=True, check=False)
    return [done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")]


def spawn(argv: list[str]) -> int:
    _children.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr))
    return len(_children) - 1


def end(number: int) -> None:
    _children[number].terminate()
    _children[number].wait()


def signal_child(number: int, which: int) -> None:
    _children[number].send_signal(which)


def folder() -> str:
    return tempfile.mkdtemp(prefix="insula-lab-")


def write(path: str, text: str) -> bool:
    """Whether there was anything to write to, below /proc; elsewhere a file is made."""
    if path.startswith("/proc/") and not os.path.exists(path):
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = path if path.startswith("/proc/") else f"{os.path.dirname(path)}/../.new"
    with open(temporary, "w") as stream:
        stream.write(text)
    if temporary != path:
        os.replace(temporary, path)
    return True


def remove(path: str) -> None:
    os.unlink(path)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# -- servers and clients ------------------------------------------------------------------------------------------------------
def serve(port: int, kind: str = "tcp") -> None:
    """Echo whatever comes to a port, by IPv4 and IPv6; `got` tells from whom it came."""
    _got.setdefault(port, [])
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    if kind == "tcp":
        listener.listen()
    threading.Thread(target=_accept if kind == "tcp" else _answer, args=(listener, port), daemon=True).start()


def _accept(listener: socket.socket, port: int) -> None:
    while True:
        connection, peer = listener.accept()
        _got[port].append([_plain(peer[0]), "tcp"])
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def _answer(listener: socket.socket, port: int) -> None:
    while True:
        data, peer = listener.recvfrom(65536)
        _got[port].append([_plain(peer[0]), "udp"])
        listener.sendto(data, peer)


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def got(port: int) -> list[list[str]]:
    return _got.get(port, [])


def connect(address: str, port: int, patience: float = PATIENCE, flow: str = "") -> str:
    """``open``, or why not; what is open is kept as ``flow`` if that is named."""
    connection = socket.socket(_family(address), socket.SOCK_STREAM)
    connection.settimeout(patience)
    try:
        connection.connect((address, port))
    except TimeoutError:
        return "silent"
    except OSError as cause:
        return cause.strerror or str(cause)
    if flow:
        _flows[flow] = connection
    else:
        connection.close()
    return "open"


def say(flow: str, patience: float = PATIENCE) -> bool:
    """Whether what is said on a flow comes back."""
    connection = _flows[flow]
    connection.settimeout(patience)
    word = os.urandom(8)
    try:
        connection.sendall(word)
        heard = b""
        while len(heard) < len(word):
            piece = connection.recv(len(word) - len(heard))
            if not piece:
                return False
            heard += piece
    except OSError:
        return False
    return heard == word


def ask(address: str, port: int, patience: float = PATIENCE, source: int = 0) -> str:
    """``open`` when what is sent to a UDP port comes back, or why not."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as asking:
        asking.settimeout(patience)
        if source:
            asking.bind(("", source))
        try:
            asking.connect((address, port))
            asking.send(b"word")
            return "open" if asking.recv(64) == b"word" else "garbled"
        except TimeoutError:
            return "silent"
        except OSError as cause:
            return cause.strerror or str(cause)


def knock(address: str, ports: list[int]) -> None:
    """Begin to connect, and look no further."""
    for port in ports:
        knocking = socket.socket(_family(address), socket.SOCK_STREAM)
        knocking.setblocking(False)
        knocking.connect_ex((address, port))
        _flows[f"knock {address} {port}"] = knocking


def ping(address: str, patience: float = PATIENCE) -> bool:
    """Whether an echo comes back."""
    six = ":" in address
    kind, protocol, reply = (128, socket.IPPROTO_ICMPV6, 129) if six else (8, socket.IPPROTO_ICMP, 0)
    token = os.urandom(8)
    with socket.socket(_family(address), socket.SOCK_RAW, protocol) as pinging:
        pinging.settimeout(patience)
        body = struct.pack("!BBHHH", kind, 0, 0, 1, 1) + token
        if not six:
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        try:
            pinging.sendto(body, (address, 0))
            while True:
                data = pinging.recv(2048)[0 if six else 20 :]
                if data[:1] == bytes([reply]) and data[8:16] == token:
                    return True
        except OSError:
            return False


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# -- frames -------------------------------------------------------------------------------------------------------------------
def send(frames: list[str], link: str = "eth0") -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((link, 0))
        for frame in frames:
            raw.send(bytes.fromhex(frame))


def sniff(name: str, link: str = "eth0") -> None:
    """From now on keep what comes by a link, for `heard`."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    raw.bind((link, ALL))
    _sniffers[name] = raw


def heard(name: str, until: str, patience: float = PATIENCE) -> list[str]:
    """The frames that came in, up to the first that holds ``until`` (hex), which must come."""
    frames: list[str] = []
    raw, token = _sniffers[name], bytes.fromhex(until)
    while select.select([raw], [], [], patience)[0]:
        data, (_, _, kind, *_) = raw.recvfrom(65536)
        if kind == socket.PACKET_OUTGOING:
            continue
        if token in data:
            return frames
        frames.append(data.hex())
    raise TimeoutError("what all else was to come before never came")


# -- names and leases -----------------------------------------------------------------------------------------------------------
def lookup(server: str, name: str, kind: str = "A", patience: float = PATIENCE) -> list[str]:
    """The addresses a name server gives; its refusal or silence as a word in brackets."""
    number = {"A": 1, "AAAA": 28}[kind]
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    with socket.socket(_family(server), socket.SOCK_DGRAM) as asking:
        asking.settimeout(patience)
        try:
            asking.connect((server, 53))
            asking.send(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", number, 1))
            answer = asking.recv(4096)
        except OSError as cause:
            return [f"({'silent' if isinstance(cause, TimeoutError) else cause.strerror})"]
    _, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", answer)
    if flags & 15:
        return [f"(rcode {flags & 15})"]
    found, at = [], 12 + len(labels) + 4
    for _ in range(count):
        while answer[at] and answer[at] < 192:
            at += answer[at] + 1
        at += 2 if answer[at] else 1
        kind_, _, _, length = struct.unpack_from("!HHIH", answer, at)
        at += 10
        if kind_ == number:
            found.append(str(ipaddress.ip_address(answer[at : at + length])))
        at += length
    return found


def lease(mac: str, link: str = "eth0", patience: float = PATIENCE) -> dict[str, str]:
    """Discover, then request: what a DHCP server gives to who has ``mac``; nothing when nobody answers."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    raw.bind((link, 0x0800))
    with raw:
        raw.send(_dhcp(mac, b"\x35\x01\x01"))
        offer = _offered(raw, 2, patience)
        if not offer:
            return {}
        wanted = ipaddress.ip_address(offer["address"]).packed
        server = ipaddress.ip_address(offer["server"]).packed
        raw.send(_dhcp(mac, b"\x35\x01\x03" + b"\x32\x04" + wanted + b"\x36\x04" + server))
        return _offered(raw, 5, patience)


def renew(mac: str, address: str, server: str, patience: float = PATIENCE) -> str:
    """As a guest half-way through its lease: asks whom it had it from, directly. The address it is given."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(patience)
        asking.bind((address, 68))
        asking.sendto(_message(mac, b"\x35\x01\x03", address), (server, 67))
        answer = asking.recv(4096)
    return str(ipaddress.ip_address(answer[16:20]))


def _message(mac: str, options: bytes, address: str = "0.0.0.0", flags: int = 0) -> bytes:
    hardware, own = bytes.fromhex(mac.replace(":", "")), ipaddress.ip_address(address).packed
    body = struct.pack("!BBBBIHH", 1, 1, 6, 0, 77, 0, flags) + own + bytes(12) + hardware + bytes(10 + 192)
    return body + b"\x63\x82\x53\x63" + options + b"\x37\x03\x01\x03\x06\xff"


def _dhcp(mac: str, options: bytes) -> bytes:
    hardware, body = bytes.fromhex(mac.replace(":", "")), _message(mac, options, flags=0x8000)
    datagram = struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return b"\xff" * 6 + hardware + b"\x08\x00" + header + datagram


def _offered(raw: socket.socket, kind: int, patience: float) -> dict[str, str]:
    while select.select([raw], [], [], patience)[0]:
        data, (_, _, way, *_) = raw.recvfrom(4096)
        datagram = data[34:]
        if way == socket.PACKET_OUTGOING or data[23] != 17 or datagram[2:4] != b"\0\x44":
            continue
        body = datagram[8:]
        found, options = {"address": str(ipaddress.ip_address(body[16:20]))}, body[240:]
        names = {1: "mask", 3: "router", 6: "names", 54: "server"}
        said = 0
        while options and options[0] != 255:
            code, length = options[0], options[1]
            value, options = options[2 : 2 + length], options[2 + length :]
            if code == 53:
                said = value[0]
            elif code in names:
                found[names[code]] = str(ipaddress.ip_address(value[:4]))
        if said == kind:
            return found
    return {}


def await_address(prefix: str, link: str = "eth0", patience: float = PATIENCE) -> str:
    """The first address of a link that begins so and may be used; waits for it, told by the kernel of each change."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, 0x110))  # RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
        while True:
            listing = json.loads(run(["ip", "-json", "address", "show", "dev", link])[1])
            for each in listing[0]["addr_info"]:
                if each["local"].startswith(prefix) and not each.get("tentative"):
                    return str(each["local"])
            if not select.select([changes], [], [], patience)[0]:
                raise TimeoutError(f"no address {prefix}… came: {listing}")
            changes.recv(65536)


DOES: list[Callable[..., Any]] = [
    run,
    spawn,
    end,
    signal_child,
    folder,
    write,
    remove,
    serve,
    got,
    connect,
    say,
    ask,
    knock,
    ping,
    send,
    sniff,
    heard,
    lookup,
]
DOES += [lease, renew, await_address]


def main() -> None:
    does = {function.__name__: function for function in DOES}
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        what, words, named = json.loads(line)
        try:
            reply = [True, does[what](*words, **named)]
        except Exception as error:  # noqa: BLE001 (told to who asked)
            reply = [False, f"{type(error).__name__}: {error}"]
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    for child in _children:
        child.kill()
        child.wait()


if __name__ == "__main__":
    main()
