"""What runs on the host of a `world`: makes a real fabric there, as root or as an ordinary user, and machines that hang in it.

A machine is a namespace with a tap, and a thread that carries frames between that and the fabric's, as QEMU would: they are of
the same format. Told what to do as `node` is, a line of JSON at a time; what it does not know, `node` does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from insula.errors import InsulaError
from insula.host.holder import Holder, connect_holder, start_holder
from insula.model.addresses import slaac_address
from insula.model.network import Firewall, NetworkSpec, Nic, Publish, Rates, parse_rule
from insula.networks import counted, fabric, forwarders, naming, strangers
from insula.networks.plan import Attached, Segment
from insula.store import names
from tests.functional.networks import node
from tests.functional.networks.world import PYTHON

HOME = names.Home(Path(os.environ["INSULA_HOME"]))
NETWORK = "1a000001"
SPECS = {
    NETWORK: NetworkSpec("nat", "10.77.0.0/24", "fd12:3456:789a:1::/64"),
    "2b000002": NetworkSpec("private", "10.78.0.0/24", "fd12:3456:789a:2::/64"),
    "3c000003": NetworkSpec("bridge", parent="lanbr"),
    "4d000004": NetworkSpec("bridge", parent="eth0"),
    "5e000005": NetworkSpec("bridge", parent="lanbr", vlan=7),
    "6f000006": NetworkSpec("bridge", parent="eth0", vlan=7),
    "70000007": NetworkSpec("nat", "10.79.0.0/24", "fd12:3456:789a:7::/64"),
}


class Machine:
    """A namespace whose ``eth0`` is at the other end of a tap of the fabric."""

    def __init__(self, card: Attached, tap: int) -> None:
        self.card, self.tap = card, tap
        folder = HOME.root / "machines" / card.machine
        folder.mkdir(parents=True, exist_ok=True)
        self.holder: Holder = start_holder(folder / "holder.sock", own_user=os.geteuid() != 0)[0]
        self._eth = self.holder.tap("eth0")
        self._told, self._tell = os.pipe()
        self._pump = threading.Thread(target=self._carry, daemon=True)
        self._pump.start()
        spaces = self.holder.spaces
        mac = card.segment.mac if card.segment else card.nic.mac
        batch = f"link set lo up\nlink set eth0 address {mac} up\n"
        subprocess.run([*spaces.enter(), "ip", "-batch", "-"], input=batch.encode(), pass_fds=spaces.descriptors(), check=True)
        self.process = subprocess.Popen(
            [*spaces.enter(), *PYTHON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=spaces.descriptors()
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def _carry(self) -> None:
        other = {self.tap: self._eth, self._eth: self.tap}
        poll = select.poll()
        for each in (*other, self._told):
            poll.register(each, select.POLLIN)
        while True:
            for each, _ in poll.poll():
                if each == self._told:
                    return
                try:
                    os.write(other[each], os.read(each, 1 << 17))
                except OSError:
                    continue  # a link that is down takes nothing

    def do(self, line: bytes) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def configure(self) -> None:
        nic, spec = self.card.nic, self.card.network
        lines = [f"address replace {nic.ipv4}/24 dev eth0", f"route replace default via {str(spec.ipv4)[:-4]}1"]
        spaces = self.holder.spaces
        data = "\n".join(lines).encode() + b"\n"
        subprocess.run([*spaces.enter(), "ip", "-batch", "-"], input=data, pass_fds=spaces.descriptors(), check=True)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        os.write(self._tell, b"x")
        self._pump.join()
        for each in (self.tap, self._eth, self._told, self._tell):
            os.close(each)
        self.holder.quit()
        self.holder.close()


_machines: dict[str, Machine] = {}


def card(name: str, number: int, network: str = NETWORK, **rates: int) -> Attached:
    spec, mac = SPECS[network], f"52:54:00:1a:00:{number:02x}"
    ipv4 = f"{spec.ipv4[:-4]}{number}" if spec.ipv4 else None
    ipv6 = slaac_address(spec.ipv6, mac) if spec.ipv6 else None
    nic = Nic(f"{number:08x}", network, mac, ipv4, ipv6, rates=Rates(**rates))
    return Attached(nic, name, f"id-{name}", spec)


def attach(name: str, number: int, network: str = NETWORK, configured: bool = True, **rates: int) -> None:
    wanted = card(name, number, network, **rates)
    _machines[name] = Machine(wanted, fabric.attach(HOME, wanted))
    if configured and wanted.nic.ipv4:
        _machines[name].configure()


def attach_heir(name: str, number: int, former: int) -> str:
    """One that has the addresses of the machine ``former``, and says nothing by itself; its hardware address."""
    own, once = card(name, number), card("", former).nic
    wanted = msgspec.structs.replace(own, nic=msgspec.structs.replace(own.nic, ipv4=once.ipv4, ipv6=once.ipv6))
    _machines[name] = Machine(wanted, fabric.attach(HOME, wanted))
    return wanted.nic.mac


def remember(address: str, mac: str, name: str = "") -> None:
    """Have a machine, or the router, believe that an address is at ``mac``."""
    link = "eth0" if name else naming.bridge_name(NETWORK)
    _in_space(name, "ip", "neighbour", "replace", address, "lladdr", mac, "dev", link, "nud", "reachable")


def remembered(address: str, name: str = "") -> str:
    """Where a machine, or the router, believes an address to be."""
    words = _in_space(name, "ip", "neighbour", "show", address).split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def _in_space(name: str, *words: str) -> str:
    """What a command prints in a machine's network, or in the fabric's."""
    holder = _machines[name].holder if name else connect_holder(HOME.fabric / names.HOLDER_SOCKET)
    assert holder is not None
    spaces = holder.spaces
    done = subprocess.run([*spaces.enter(), *words], pass_fds=spaces.descriptors(), capture_output=True, text=True, check=True)
    if not name:
        holder.close()
    return done.stdout


def end(name: str) -> None:
    """As when a machine ended: its QEMU is gone, then its cards are taken off."""
    machine = _machines.pop(name)
    machine.end()
    fabric.detach(HOME, machine.card.nic.key)


def crash(name: str) -> None:
    """As when a machine ended and nobody took its cards off."""
    _machines.pop(name).end()


def race(count: int) -> None:
    """So many processes each attach a card and take it off again."""
    code = (
        "import os, sys; from tests.functional.networks import actor\n"
        "wanted = actor.card(f'n{sys.argv[1]}', int(sys.argv[1])); tap = actor.fabric.attach(actor.HOME, wanted)\n"
        "assert actor.counted.status(actor.HOME).cards[wanted.nic.key].present\n"
        "os.close(tap); actor.fabric.detach(actor.HOME, wanted.nic.key)"
    )
    racers = [subprocess.Popen([sys.executable, "-B", "-c", code, str(40 + each)]) for each in range(count)]
    if failed := [racer.args for racer in racers if racer.wait() != 0]:
        raise AssertionError(failed)


def attach_kept(name: str, number: int) -> None:
    """One that keeps the address and hardware address it has always had, and remembers a gateway elsewhere."""
    segment = Segment("10.0.2.15/24", "10.0.2.2", "52:54:00:99:99:99", "52:55:0a:00:02:02")
    wanted = msgspec.structs.replace(card(name, number), segment=segment)
    kept = _machines[name] = Machine(wanted, fabric.attach(HOME, wanted))
    spaces = kept.holder.spaces
    lines = ["address replace 10.0.2.15/24 dev eth0", "route replace default via 10.0.2.2"]
    data = "\n".join(lines).encode() + b"\n"
    subprocess.run([*spaces.enter(), "ip", "-batch", "-"], input=data, pass_fds=spaces.descriptors(), check=True)


def configure(name: str, address: str) -> None:
    spaces = _machines[name].holder.spaces
    words = [*spaces.enter(), "ip", "address", "replace", f"{address}/24", "dev", "eth0"]
    subprocess.run(words, pass_fds=spaces.descriptors(), check=True)


def speed(name: str, address: str) -> float:
    """Bits per second at which half a megabyte of a machine comes back from who echoes."""
    size = 1 << 19
    with _machines[name].holder.socket(socket.AF_INET, socket.SOCK_STREAM, 0) as flow:
        flow.settimeout(node.PATIENCE)
        flow.connect((address, 80))
        begun, left = time.monotonic(), size
        sender = threading.Thread(target=flow.sendall, args=(bytes(size),))
        sender.start()
        while left:
            left -= len(flow.recv(65536))
        sender.join()
        return size * 8 / (time.monotonic() - begun)


def machine(name: str, line: str) -> Any:
    return json.loads(_machines[name].do(line.encode()))


def isolate(name: str) -> None:
    """Keep a machine from all others of its network."""
    after = msgspec.structs.replace(_machines[name].card, firewall=Firewall(isolated=True))
    fabric.change(HOME, after)
    _machines[name].card = after


def change(name: str, rules: list[str] | None = None, up: bool = True, called: str = "", send: int = 0, receive: int = 0) -> None:
    before = _machines[name].card
    nic = msgspec.structs.replace(before.nic, up=up, rates=Rates(send, receive))
    firewall = Firewall(rules=tuple(map(parse_rule, rules or [])))
    after = msgspec.structs.replace(before, nic=nic, firewall=firewall, machine=called or before.machine)
    fabric.change(HOME, after)
    _machines[name].card = after


def publish(name: str, *port: Any) -> None:
    forwarders.publish(HOME, _machines[name].card, Publish(*port))


def unpublish(*port: Any) -> bool:
    return forwarders.unpublish(HOME, Publish(*port))


def published() -> list[str]:
    return [f"{each.publish.host_port} {each.machine}" for each in forwarders.published(HOME)]


def blocked() -> list[list[str]]:
    """Who drops what machines send to the outside, and what would help."""
    return [[each.words(), each.fix] for each in strangers.who_blocks(naming.home_key(HOME.root))]


def repair() -> list[str]:
    return fabric.repair(HOME)


def status() -> Any:
    return msgspec.to_builtins(counted.status(HOME))


def sniff_card(name: str) -> list[str]:
    """Frames of a card, until there is one it sent and one it got, once something makes it speak."""
    own = bytes.fromhex(_machines[name].card.nic.mac.replace(":", ""))
    found: list[bytes] = []
    with fabric.capture_socket(HOME, _machines[name].card.nic.key) as frames:
        frames.settimeout(node.PATIENCE)
        _machines[name].do(json.dumps(["ping", ["10.77.0.1"], {}]).encode())
        while not all(any(frame[at : at + 6] == own for frame in found) for at in (0, 6)):
            found.append(frames.recv(65536))
    return [frame.hex() for frame in found]


def programs() -> dict[str, int]:
    """The processes of this home's fabric, by what they are."""
    found = {}
    sockets = {"holder": HOME.fabric / names.HOLDER_SOCKET}
    holder = connect_holder(sockets["holder"])
    if holder is None:
        return {}
    with holder:
        found["inside"] = holder.pid
        found["holder"] = _parent(holder.pid)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _parent(int(entry.name)) == found["holder"]:
            word = os.path.basename((entry / "cmdline").read_bytes().split(b"\0")[0].decode())
            child = next(iter((entry / "task" / entry.name / "children").read_text().split()), "")
            if int(entry.name) != found["inside"]:
                found["pasta" if child else word] = int(child or entry.name)
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(*which: str) -> None:
    """Kill programs of the fabric, and return when they have ended."""
    pids = programs()
    waits = [os.pidfd_open(pids[each]) for each in which]
    for each in which:
        os.kill(pids[each], signal.SIGKILL)
    for wait in waits:
        assert select.select([wait], [], [], node.PATIENCE)[0]
        os.close(wait)


def mess_up() -> None:
    """Somebody changes the fabric by hand."""
    holder = connect_holder(HOME.fabric / names.HOLDER_SOCKET)
    assert holder is not None
    with holder:
        spaces = holder.spaces
        for words in (["nft", "flush", "ruleset"], ["ip", "link", "delete", naming.bridge_name(NETWORK)]):
            subprocess.run([*spaces.enter(), *words], pass_fds=spaces.descriptors(), check=True)


def remains() -> list[str]:
    """What there is on this host that a fabric made, or should have put back."""
    found = [f"link {name}" for _, name in socket.if_nameindex() if name not in ("lo", "eth0", "lanbr", "lanport")]
    found += [f"file {path.relative_to(HOME.fabric)}" for path in HOME.fabric.rglob("*") if not path.is_dir()]
    if os.geteuid() == 0:
        for words in (["nft", "list", "tables"], ["ip", "route", "show", "proto", "boot"]):
            lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
            found += [line for line in lines if not line.startswith("default ")]
        found += [] if Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n" else ["forwarding"]
        found += [str(path) for path in Path("/run/insula").glob("*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) not in (os.getpid(), os.getppid()) and _is_ours(entry):
            found.append(f"process {(entry / 'cmdline').read_bytes()!r}")
    return found


def _is_ours(entry: Path) -> bool:
    """What was started here is in this host's mount namespace, or (in a room, or a sandbox) the child of one that is."""
    try:
        here = (entry / "ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
        return here and bool((entry / "cmdline").read_bytes())
    except OSError:
        return False


def main() -> None:
    HOME.prepare()
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        what, words, named = json.loads(line)
        try:
            does = globals()[what] if what in globals() else getattr(node, what)
            reply = does(*words, **named)
            print(json.dumps([True, reply]), flush=True)
        except InsulaError as error:
            print(json.dumps([False, f"{error.code}: {error.message}"]), flush=True)
        except Exception as error:  # noqa: BLE001 (whoever told us is to see it)
            print(json.dumps([False, f"{type(error).__name__}: {error}"]), flush=True)


if __name__ == "__main__":
    main()
