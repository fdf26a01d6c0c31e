"""Addresses that a network's own server gives: have the guest's DHCP client ask for one, as who the guest now is.

On networks of ours the agent sets what we chose. On a bridged one the LAN's server chooses, and only a client in the guest asks:
networkd, dhclient or busybox's udhcpc, which is started where a guest without an init of its own has none.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from insula.errors import GuestError
from insula.operations.identify import identify
from insula.store import names
from insula.store.machines import MachineRecord

if TYPE_CHECKING:
    from insula.guest.link import Link
    from insula.operations.context import Context

# ``leave``: forget what a former self was given, while the cable is out; ``begin``: then ask, once it is in. ``renew``: ask
# whether it still holds. ``ensure``: ask if nobody does.
How = Literal["leave", "begin", "renew", "ensure"]

_TIME: Final = (
    20.0  # seconds; of a server that is there the answer comes within four, and nobody waits longer for one that is not
)
_NOBODY: Final = 3
_FOUND: Final = 20.0  # seconds for a guest to find a card; an emulated one takes half of one
_LOOK: Final = 0.1

# Words of a client that was ended are kept in /run, to begin it anew with. What is called with them is the guest's own.
_SCRIPT: Final = r"""
by_networkd() {
    [ -d /run/systemd/netif ] && networkctl --no-pager --no-legend list "$1" 2>/dev/null | grep -qv unmanaged
}
clients() {
    for process in /proc/[0-9]*; do
        case $(cat "$process/comm" 2>/dev/null) in dhclient | udhcpc) ;; *) continue ;; esac
        tr '\0' '\n' <"$process/cmdline" | grep -qx -- "$1" && echo "${process#/proc/}"
    done
}
end() {
    for client in $(clients "$1"); do
        cat "/proc/$client/cmdline" >"/run/insula-dhcp.$1"
        kill -9 "$client"
        while [ -e "/proc/$client/cmdline" ] && [ -n "$(tr '\0' x <"/proc/$client/cmdline")" ]; do :; done
    done
}
again() { # with the words it was ended with, in the foreground or not; a server's answer takes a moment
    [ -e "/run/insula-dhcp.$1" ] || return 0
    exec 9<"/run/insula-dhcp.$1"
    rm -f "/run/insula-dhcp.$1"
    setsid xargs -0 sh -c 'exec "$0" "$@"' <&9 >/dev/null 2>&1 9<&- &
    exec 9<&-
    for moment in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        ip -4 address show dev "$1" | grep -q inet && return 0
        sleep 0.2
    done
}
leave() {
    end "$1"
    [ -e "/run/insula-dhcp.$1" ] || [ "$boot" = direct ] || return 3
    ip -4 address flush dev "$1"
    switch=/proc/sys/net/ipv6/conf/$1/disable_ipv6
    [ ! -e "$switch" ] || { former=$(cat "$switch"); echo 1 >"$switch"; echo "$former" >"$switch"; }
}
renew() {
    for client in $(clients "$1"); do
        case $(cat "/proc/$client/comm") in udhcpc) kill -USR1 "$client" ;; *) end "$1" && again "$1" ;; esac
    done
}
begin() {
    again "$1"
    [ "$boot" != direct ] || ensure "$1"
}
ensure() {
    [ -z "$(clients "$1")" ] && command -v udhcpc >/dev/null || return 0
    ip -4 address show dev "$1" | grep -q inet || udhcpc -b -S -t 3 -T 1 -i "$1" >/dev/null 2>&1
}
tell() {
    if by_networkd "$2"; then
        case $1 in leave) networkctl reconfigure "$2" ;; renew) networkctl renew "$2" ;; esac
    else "$1" "$2"
    fi
}
how=$1 boot=$2 code=0
shift 2
for mac; do
    for link in /sys/class/net/*; do
        [ "$(cat "$link/address")" = "$mac" ] || continue
        tell "$how" "${link##*/}" || code=$?
    done
done
exit "$code"
"""


def asks_elsewhere(record: MachineRecord) -> bool:
    """Whether the machine is on a network whose addresses are not ours to give."""
    return any(nic.ipv4 is None for nic in record.nics)


def tell_clients(link: Link, record: MachineRecord, how: How) -> str:
    """Tell the guest's DHCP clients about its cards on such networks; what is wrong, if anything is. Never raises GuestError."""
    macs = [nic.mac for nic in record.nics if nic.ipv4 is None]
    if not macs:
        return ""
    try:
        ended = link.open("exec", argv=("sh", "-c", _SCRIPT, "sh", how, record.boot.kind, *macs)).finish(timeout=_TIME)
    except GuestError as failure:
        return f"the guest's DHCP client could not be told: {failure.message}"
    code = ended.number("code")
    if code == _NOBODY:
        return "no DHCP client in the guest is known, so it may go on with an address that another has"
    return f"the guest's DHCP client refused (exit code {code})" if code else ""


def introduce(context: Context, folder: Path, record: MachineRecord) -> None:
    """Tell a guest who it is, also one into which a card was just plugged: as soon as it has found that.

    Raises GuestError, AgentAbsent, MachineEnded.
    """
    deadline = time.monotonic() + _FOUND
    while True:
        try:
            identify(context, folder, record)
            ensure_addressed(folder / names.RUN, record)
            return
        except GuestError as failure:
            if "ENODEV" not in failure.message or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK)  # no event tells that a guest's driver has taken a card


def ensure_addressed(run: Path, record: MachineRecord) -> None:
    """Have a guest that has no init of its own ask the LAN for addresses, unless it does so already."""
    from insula.guest.link import open_link

    if record.boot.kind == "direct" and asks_elsewhere(record):
        with contextlib.suppress(GuestError), open_link(run) as link:
            tell_clients(link, record, "ensure")
