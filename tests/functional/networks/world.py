"""A host in a network namespace of its own, on a LAN with somebody else, for a real fabric to be made on it by `actor`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from insula.host.native import native_digest, native_path
from tests.framework.ordinary import AS_A_USER, REACHABLE, needed
from tests.framework.project import ROOT
from tests.functional.networks.lab import Failed, Node

_CODE = (Path(__file__).parent / "node.py").read_text()
PYTHON = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "python3", "-c", _CODE]
_SWITCHES = """
import json, sys
sys.path[:0] = sys.argv[1:]
from tests.framework.leaks import sysctls
print(json.dumps(sysctls()))
"""
OTHER4, HOST4 = "203.0.113.9", "203.0.113.1"

# Arguments: a folder, whether for a user (who sees its home as /mnt), the mode of the tun device, then those of REACHABLE, "--"
# and the command. What names links is the namespace's own sysfs.
_HOST = (
    REACHABLE
    + r"""
set -e
folder=$1 user=$2 tun=$3; shift 3
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
echo 0 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv6/conf/all/forwarding
ip link set lo up
[ ! -e "$folder/resolv.conf" ] || mount --bind "$folder/resolv.conf" /etc/resolv.conf
if [ "$user" = yes ]; then
    mkdir "$folder/dev"
    mount -t tmpfs -o mode=755 tmpfs "$folder/dev"
    mknod -m "$tun" "$folder/dev/tun" c 10 200
    mount --bind "$folder/dev/tun" /dev/net/tun
    mount --bind "$folder/home" /mnt
    words=
    while [ "$1" != -- ]; do words="$words $1"; shift; done
    mkdir "$folder/ours"
    reachable "$folder/ours" $words
fi
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
)


class World:
    """``host`` does what `actor` can, ``other`` what `node` can."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, *, ordinary: bool, tun: str) -> None:
        self._stack = stack
        place = Path("/mnt") if ordinary else folder / "home"
        _bring_keeper(folder / "home")
        if ordinary:
            subprocess.run(["chown", "-R", "65534:65534", folder / "home"], check=True)
        environment = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"INSULA_HOME={place}/insula", f"HOME={place}"]
        environment += [f"PYTHONPATH={ROOT}/src:{ROOT}"]
        actor = [*environment, sys.executable, "-B", "-m", "tests.functional.networks.actor"]
        words = [os.fspath(folder), "yes" if ordinary else "no", tun, *needed(), "--", *(AS_A_USER if ordinary else []), *actor]
        self.other = self._node(["unshare", "--net", *PYTHON])
        self.host = self._node(["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _HOST, "sh", *words])
        self._join()

    def make_bridge(self, *, filters: bool = False) -> None:
        """Put the host's card into a bridge, as who wants machines on a LAN does; the host's address moves there. One that
        ``filters`` lets the tag 7 come in from the LAN."""
        made = "link add lanbr type bridge vlan_filtering 1\n" if filters else "link add lanbr type bridge\n"
        made += "link set lanbr up\naddress flush dev eth0\nlink set eth0 master lanbr\n"
        made += f"address add {HOST4}/24 dev lanbr\nroute replace default via {OTHER4}\n"
        subprocess.run(["nsenter", f"--net={self.host.path}", "ip", "-batch", "-"], input=made.encode(), check=True)
        if filters:
            self.root("bridge", "vlan", "add", "dev", "eth0", "vid", "7")

    def serve_lan(self, folder: Path) -> None:
        """Somebody else on the LAN gives addresses away."""
        words = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces"]
        words += ["--user=root", "--group=", "--pid-file=", f"--dhcp-leasefile={folder}/leases", "--no-ping"]
        self.other.spawn([*words, "--dhcp-range=203.0.113.50,203.0.113.60,1h", "--log-facility=-"])

    def serve_names(self, address: str, *words: str) -> None:
        """Have a name server of the host's own at ``address``."""
        argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
        argv += ["--user=root", "--group=", "--pid-file=", f"--listen-address={address}", *words]
        server = subprocess.Popen(["nsenter", f"--net={self.host.path}", *argv])
        self._stack.callback(server.wait)
        self._stack.callback(server.terminate)

    def _node(self, argv: list[str]) -> Node:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        self._stack.enter_context(process)  # waits for it, and closes its pipes
        return Node(process)

    def _join(self) -> None:
        """A LAN of two, made from here: as root, whoever the host's user is."""
        made = f"link add name eth0 netns {self.host.path} type veth peer name eth0 netns {self.other.path}\n"
        subprocess.run(["ip", "-batch", "-"], input=made.encode(), check=True)
        for end, address in ((self.host, HOST4), (self.other, OTHER4)):
            batch = f"link set eth0 up\naddress add {address}/24 dev eth0\nlink set lo up\n"
            subprocess.run(["nsenter", f"--net={end.path}", "ip", "-batch", "-"], input=batch.encode(), check=True)
        self.root("ip", "route", "add", "default", "via", OTHER4)

    def root(self, *words: str) -> None:
        """Do something as root in the host's network."""
        subprocess.run(["nsenter", f"--net={self.host.path}", *words], check=True)

    def switches(self) -> dict[str, str]:
        """The host's (sysctls), by their names below /proc/sys/net."""
        words = ["nsenter", f"--net={self.host.path}", sys.executable, "-c", _SWITCHES, f"{ROOT}/src", str(ROOT)]
        told: dict[str, str] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        return told

    def machine(self, name: str) -> Guest:
        return Guest(self.host, name)


class Guest:
    """A machine on the host: ``guest.ping("10.0.0.1")`` calls `node.ping` in it."""

    def __init__(self, host: Node, name: str) -> None:
        self._host, self._name = host, name

    def __getattr__(self, what: str) -> Any:
        def do(*words: Any, **named: Any) -> Any:
            done, reply = self._host.machine(self._name, json.dumps([what, words, named]))
            if not done:
                raise Failed(f"{what}{words}: {reply}")
            return reply

        return do


def _bring_keeper(home: Path) -> None:
    """The host's user has a cache of his own, with our built program in it."""
    program = native_path("insula-keeper")
    place = home / ".cache" / "insula" / f"native-{native_digest('keeper')}" / program.parent.name
    place.mkdir(parents=True)
    shutil.copy(program, place)


@contextlib.contextmanager
def world(folder: Path, *, ordinary: bool, tun: str = "666") -> Iterator[World]:
    """``tun``: the mode of the tun device for an ordinary user; distributions give it to all."""
    with contextlib.ExitStack() as stack:
        yield World(folder, stack, ordinary=ordinary, tun=tun)
