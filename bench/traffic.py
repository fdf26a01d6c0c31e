"""How fast bytes move: between machines, to and from their host and the outside, beside the same made by hand.

The host is a network namespace made for it, with an outside at the other end of a pair of links, so that nothing of this
computer's own network has a say in it or is touched. What happens there is `traffic_host`'s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from bench import ROOT
from bench.traffic_host import Seconds, Told
from bench.world import World, built, scratch
from insula.host.native import native_digest, native_path
from tests.framework.ordinary import AS_A_USER, REACHABLE, needed

SIZE: Final = 16 << 20  # bytes each time: many short flows say more than a few long ones, whatever else the computer does
# What ours is compared with. By whose speed ours is multiplied at least, where that is not the bar's.
SIDES: Final = {"tap": "tap and bridge by hand", "pasta": "the same by hand", "slirp": "QEMU's user networking", "dnat": "DNAT"}
LIMITS: Final = {"slirp": 1.5, "dnat": 0.9}
_NOBODY: Final = 65534
_HOST4, _OUTSIDE4 = "203.0.113.1", "203.0.113.9"  # RFC 5737: nobody's
_PATIENCE: Final = 900.0  # seconds

# Arguments: a folder, whether for a user, then those of REACHABLE, "--" and the command. What names links is the namespace's own
# sysfs; a user sees a tun device that all may use, as distributions have it, and its home as /mnt.
_HOST: Final = (
    REACHABLE
    + r"""
set -e
folder=$1 user=$2; shift 2
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
mount --bind "$folder/home" /mnt
if [ "$user" = yes ]; then
    mkdir "$folder/dev" "$folder/ours"
    mount -t tmpfs -o mode=755 tmpfs "$folder/dev"
    mknod -m 666 "$folder/dev/tun" c 10 200
    mount --bind "$folder/dev/tun" /dev/net/tun
    words=
    while [ "$1" != -- ]; do words="$words $1"; shift; done
    reachable "$folder/ours" $words
fi
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
)


def of_root(world: World, n: int) -> Seconds | None:
    """None where nobody may make such a host: it takes root."""
    return _measured(world, n, ordinary=False)


def of_user(world: World, n: int) -> Seconds | None:
    """The same as an ordinary user."""
    return _measured(world, n, ordinary=True)


def _measured(world: World, n: int, *, ordinary: bool) -> Seconds | None:
    if os.geteuid() != 0:
        return None
    with scratch() as folder, _outside(built("flow")) as outside:
        folder.chmod(0o755)
        told = _furnish(world, folder, Told("/mnt/insula", "/mnt/flow", _HOST4, _OUTSIDE4, outside, n, SIZE))
        if ordinary:
            told = msgspec.structs.replace(told, outside=0)
            subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", folder / "home"], check=True)
        return _host(folder, told, outside)


def _furnish(world: World, folder: Path, told: Told) -> Told:
    """The host's home: the image, which is not built again, our program that is, and `flow`."""
    image, home = world.image("tiny"), folder / "home"
    images = home / "insula" / "images"
    images.mkdir(parents=True)
    shutil.copytree(image.folder, images / image.folder.name)
    shutil.copy(world.home.images / "names.json", images)
    keeper = native_path("insula-keeper")
    place = home / ".cache" / "insula" / f"native-{native_digest('keeper')}" / keeper.parent.name
    place.mkdir(parents=True)
    shutil.copy(keeper, place)
    shutil.copy(built("flow"), home)
    return told


@contextlib.contextmanager
def _outside(flow: Path) -> Iterator[int]:
    """Somebody out there who serves; the pid."""
    with subprocess.Popen(["unshare", "--net", "--", flow, "serve", "5000"], stdout=subprocess.PIPE) as outside:
        try:
            assert outside.stdout is not None
            assert outside.stdout.readline() == b"ready\n"
            yield outside.pid
        finally:
            outside.kill()


def _host(folder: Path, told: Told, outside: int) -> Seconds:
    user = told.outside == 0
    environment = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/mnt", f"PYTHONPATH={ROOT}/src:{ROOT}"]
    child = [*environment, sys.executable, "-B", "-m", "bench.traffic_host", msgspec.json.encode(told).decode()]
    words = [os.fspath(folder), "yes" if user else "no", *needed(), "--", *(AS_A_USER if user else []), *child]
    unshare = ["unshare", "--net", "--mount", "--propagation", "private", "--", "sh", "-c", _HOST, "sh", *words]
    with subprocess.Popen(unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"here\n", "the host did not come up"
        _join(f"/proc/{host.pid}/ns/net", f"/proc/{outside}/ns/net")
        answer, _ = host.communicate(b"go\n", timeout=_PATIENCE)
        assert host.returncode == 0
    return msgspec.json.decode(answer, type=Seconds)


def _join(host: str, outside: str) -> None:
    subprocess.run(["ip", "link", "add", "name", "eth0", "netns", host, "type", "veth", "peer", "name", "eth0", "netns", outside],
                   check=True)  # fmt: skip
    for place, address, more in ((host, _HOST4, f"route add default via {_OUTSIDE4}\n"), (outside, _OUTSIDE4, "")):
        batch = f"link set dev eth0 up\naddress add {address}/24 dev eth0\n{more}"
        subprocess.run(["nsenter", f"--net={place}", "--", "ip", "-batch", "-"], input=batch.encode(), check=True)
