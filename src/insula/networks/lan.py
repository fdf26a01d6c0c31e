"""Bridged networks: machines on the host's LAN, through a bridge of the host or, where it has none, beside its network card.

A bridge of the host is joined to the fabric by a pair of links, so that guards and rules are where they always are. On a bare
card a machine gets a macvtap: a link of its own on the card, in the host's network, which no fabric knows. It and its host cannot
speak to each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks, NotFound
from insula.host import links
from insula.host.holder import Spaces
from insula.host.process import run
from insula.model.identity import new_mac
from insula.model.network import NetworkSpec
from insula.networks import naming, plan
from insula.networks.plan import Attached

_CLASS: Final = Path("/sys/class/net")
_PATIENCE: Final = 30.0  # seconds
# linux/if_tun.h: TUNSETIFF; IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_SET_INTERFACE: Final = 0x400454CA
_FLAGS: Final = 0x0002 | 0x1000 | 0x4000


def is_direct(attached: Attached) -> bool:
    """Whether a card hangs on a network card of the host, without the fabric."""
    return is_bare(attached.nic.network, attached.network)


def is_bare(network: str, spec: NetworkSpec) -> bool:
    """Whether a network is on a network card of the host, where there are no guards, rules and rates of ours.

    Of a parent that has vanished our end of the pair tells, which was a bridge's.
    """
    if spec.mode != "bridge":
        return False
    if links.exists(str(spec.parent)):
        return not (_CLASS / str(spec.parent) / "bridge").is_dir()
    return not links.exists(naming.lan_host_link(network))


def check_parent(spec: NetworkSpec) -> None:
    """Raises NotFound (``parent_missing``) or HostLacks (``needs_root``, ``no_vlan``) when machines cannot be bridged so."""
    if spec.mode != "bridge":
        return
    if os.geteuid() != 0:
        raise HostLacks(
            "only root can put machines on the host's LAN",
            code="needs_root",
            hint="run insula as root, or use a network of --mode nat, which works without",
        )
    if not links.exists(str(spec.parent)):
        raise NotFound(f"this host has no link '{spec.parent}'", code="parent_missing", hint="to see what it has: ip -brief link")
    if spec.vlan is not None:
        _check_tags()


def _check_tags() -> None:
    """Try it, in a network that ends with the trial: many kernels load what they lack when they are asked for it."""
    batch = "link add name p0 type veth peer name p1\nlink add link p0 name q0 type vlan id 7\n"
    done = run(["unshare", "--net", "ip", "-batch", "-"], data=batch.encode(), check=False, timeout=_PATIENCE)
    if done.status:
        raise HostLacks(
            "this host's kernel makes no VLANs (it has no 8021q): networks of private, NAT and bridge mode without --vlan work",
            code="no_vlan",
            hint="run: modprobe 8021q; or take the tag off at the switch, and bridge the network to the port that is left",
        )


def join(network: str, spec: NetworkSpec, spaces: Spaces) -> None:
    """Connect the fabric to the LAN's bridge, unless that was done. Raises as `check_parent`, and HostLacks."""
    check_parent(spec)
    if is_joined(network):
        return
    made = plan.lan_links(network, spec, f"/proc/self/fd/{spaces.net}")
    if links.exists(naming.lan_host_link(network)):  # its bridge vanished, and is there again
        made = made[1:]
    links.apply("ip", made, pass_fds=spaces.descriptors())
    if spec.vlan is not None and _filters_tags(spec):
        links.apply("bridge", plan.lan_tags(network, spec))


def is_joined(network: str) -> bool:
    """Whether the pair of a bridged network's hangs in a bridge of the host's; False where there is no pair."""
    return (_CLASS / naming.lan_host_link(network) / "master").exists()


def _filters_tags(spec: NetworkSpec) -> bool:
    """Whether the LAN's bridge lets only those tags by that a port of it is told to have."""
    try:
        return (_CLASS / str(spec.parent) / "bridge/vlan_filtering").read_text().strip() == "1"
    except OSError:
        return False


def leave(network: str, spec: NetworkSpec) -> None:
    """Undo `join`."""
    if spec.mode == "bridge" and links.exists(naming.lan_host_link(network)):
        links.apply("ip", [f"link delete dev {naming.lan_host_link(network)}"], tolerated=links.GONE)


def open_macvtap(attached: Attached, *, stands_by: bool = False) -> int:
    """Make a card's own link on the host's card; the descriptor for QEMU. With ``stands_by`` it has another address until
    `take_part`: no two on one card have the same. Raises as `check_parent`, and HostLacks."""
    check_parent(attached.network)
    remove(attached)
    nic, link = attached.nic, naming.macvtap_name(attached.nic.key)
    as_made = msgspec.structs.replace(nic, mac=new_mac()) if stands_by else nic
    links.apply("ip", plan.macvtap_links(nic.network, attached.network, as_made), tolerated=links.THERE)
    index = (_CLASS / link / "ifindex").read_text().strip()
    node, made = Path(f"/dev/tap{index}"), False
    try:
        if not node.exists():  # where no udev or devtmpfs makes it
            major, _, minor = (_CLASS / link / f"tap{index}" / "dev").read_text().strip().partition(":")
            node = Path(f"/dev/insula-tap{index}")
            os.mknod(node, 0o600 | 0o020000, os.makedev(int(major), int(minor)))
            made = True
        descriptor = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        remove(attached)
        raise HostLacks(
            f"cannot open the link {link}: {cause.strerror}", code="no_macvtap", hint="to see why: insula doctor"
        ) from None
    finally:
        if made:
            node.unlink()
    fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH22x", link.encode(), _FLAGS))
    return descriptor


def is_cut_off(attached: Attached) -> bool:
    """Whether the link of `open_macvtap` has vanished, with the card it was on, and that card is there again."""
    return links.exists(str(attached.network.parent)) and not links.exists(naming.macvtap_name(attached.nic.key))


def take_part(attached: Attached) -> None:
    """Give the link of a card that stood by its own address. Raises HostLacks."""
    links.apply("ip", [f"link set dev {naming.macvtap_name(attached.nic.key)} address {attached.nic.mac}"])


def remove(attached: Attached) -> None:
    """Undo `open_macvtap`; nothing happens when there is none, or for a card of another kind."""
    link = naming.macvtap_name(attached.nic.key)
    if attached.network.mode == "bridge" and links.exists(link):
        with contextlib.suppress(HostLacks):
            links.apply("ip", [f"link delete dev {link}"], tolerated=links.GONE)
    # The tagged link goes with the last one on it.
    tagged = naming.lan_vlan_link(attached.nic.network)
    if attached.network.vlan is not None and links.exists(tagged) and not list((_CLASS / tagged).glob("upper_*")):
        links.apply("ip", [f"link delete dev {tagged}"], tolerated=links.GONE)
