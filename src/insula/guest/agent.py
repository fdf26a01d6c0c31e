"""What the agent in the guest can be asked, but for programs (`execute`) and files (`copying`).

All calls raise GuestError when the guest refuses, AgentAbsent when no agent answers, MachineEnded when the machine is
gone. ``timeout`` and ``wait`` are seconds; ``wait`` is granted to an agent that does not answer yet.
"""

from __future__ import annotations

import os
import time

import msgspec

from insula.guest.link import Link
from insula.guest.wire import Value
from insula.model.text import clean

_PATIENCE = 30.0


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one network card of a guest shall have. The card is found by ``mac``; ``new_mac``, when given, replaces it.

    ``addresses`` are like ``10.0.2.15/24``; with none of them the card's addresses are left as they are.
    """

    mac: str
    new_mac: str = ""
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


class GuestIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a guest shall be. ``machine_id`` is 32 hex digits; ``host_keys`` are ssh's, by file name. What is empty stays."""

    machine_id: str = ""
    hostname: str = ""
    host_keys: tuple[tuple[str, bytes], ...] = ()
    nics: tuple[Nic, ...] = ()


class FileStatus(msgspec.Struct, frozen=True):
    """What `stat` found, as the guest tells it. ``kind`` is a letter of docs/wire.md; ``target`` that of a link."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes = b""


def ping(link: Link, data: bytes = b"", *, wait: float = 0.0, timeout: float | None = _PATIENCE) -> float:
    """How many seconds the answer took."""
    started = time.perf_counter()
    link.call("ping", data=data, wait_ms=_milliseconds(wait), timeout=timeout)
    return time.perf_counter() - started


def stat(link: Link, path: str | bytes, *, timeout: float | None = _PATIENCE) -> FileStatus:
    """Links are not followed. Raises GuestError (``no_such_file``, ``permission_denied``, …)."""
    answer = link.call("stat", path=path, timeout=timeout, subject=clean(path))
    mode, uid, gid, size, mtime_ns = (answer.number(name) for name in ("mode", "uid", "gid", "size", "mtime_ns"))
    return FileStatus(answer.text("kind"), mode, uid, gid, size, mtime_ns, answer.raw("target"))


def set_clock(link: Link, time_ns: int | None = None) -> None:
    """Set the guest's clock to ``time_ns`` since 1970 (None: this host's clock)."""
    link.call("clock", time_ns=time.time_ns() if time_ns is None else time_ns, timeout=_PATIENCE)


def reseed(link: Link) -> None:
    """Give the guest's random generator 64 bytes that no other guest ever gets. Must come before anything else after a fork."""
    link.call("reseed", data=os.urandom(64), timeout=_PATIENCE)


class Renewed(msgspec.Struct, frozen=True):
    """What `renew` did. ``done`` and ``left`` as in `Renewal`; ``missing_keys``: SSH host keys (file names) that the guest had
    and that nothing replaced."""

    done: tuple[str, ...]
    left: dict[str, str]
    missing_keys: tuple[str, ...]


def renew(link: Link, identity: GuestIdentity | None = None, *, former: str | None = None, hooks: float = _PATIENCE) -> Renewed:
    """All that a guest must do that goes on from a state, in one request: new entropy, the time, and if given an identity.

    ``former``, the host name it had, makes it somebody else: its connections are cut, late timers are passed over, and its hooks
    run, which may take ``hooks`` seconds altogether.
    """
    fields = _identity_fields(identity) if identity else []
    if former is not None:
        fields += [("former", former), ("wait_ms", round(max(0.0, hooks) * 1000))]
    fields += [("data", os.urandom(64)), ("time_ns", time.time_ns())]
    untrusted = link.call("renew", fields, timeout=_PATIENCE + max(0.0, hooks))
    left = dict(clean(text, longest=400).partition(": ")[::2] for text in untrusted.texts("left"))
    done = tuple(clean(text, longest=64) for text in untrusted.texts("done"))
    keys = tuple(clean(path, longest=300).rpartition("/")[2] for path in untrusted.raws("path"))
    return Renewed(done, left, keys)


def set_identity(link: Link, identity: GuestIdentity) -> None:
    link.call("identity", _identity_fields(identity), timeout=_PATIENCE)


def _identity_fields(identity: GuestIdentity) -> list[tuple[str, Value]]:
    fields: list[tuple[str, Value]] = []
    if identity.machine_id:
        fields.append(("machine_id", identity.machine_id))
    if identity.hostname:
        fields.append(("hostname", identity.hostname))
    fields += (("host_key", name.encode() + b"\0" + content) for name, content in identity.host_keys)
    for nic in identity.nics:
        fields += _nic_fields(nic)
    return fields


def _nic_fields(nic: Nic) -> list[tuple[str, Value]]:
    fields: list[tuple[str, Value]] = [("mac", nic.mac)]
    if nic.new_mac:
        fields.append(("new_mac", nic.new_mac))
    for name, values in (("address", nic.addresses), ("gateway", nic.gateways), ("dns", nic.dns)):
        fields += ((name, value) for value in values)
    return fields


def addresses(link: Link) -> tuple[str, ...]:
    """Addresses of all the guest's network cards, such as ``10.0.2.15/24``, cleaned for showing."""
    answer = link.call("addresses", timeout=_PATIENCE)
    return tuple(clean(untrusted, longest=64) for untrusted in answer.texts("address"))


def freeze(link: Link) -> None:
    """Stop all processes of users; agent and init go on."""
    link.call("freeze", timeout=_PATIENCE)


def thaw(link: Link) -> None:
    link.call("thaw", timeout=_PATIENCE)


def sync(link: Link, *, timeout: float | None = 300.0) -> None:
    """Flush the guest's file systems."""
    link.call("sync", timeout=timeout)


def prepare(link: Link) -> None:
    """Do ahead what every `renew` of the next minute would have to do: a state is about to be taken that others will go on from.

    An agent of before refuses.
    """
    link.call("prepare", timeout=_PATIENCE)


def shutdown(link: Link, how: str = "poweroff", *, timeout: float | None = _PATIENCE) -> None:
    """Ask the guest to go down (``poweroff``) or to start anew (``reboot``). Returns when it agreed, not when it is done."""
    link.call("shutdown", how=how, timeout=timeout)


def hangup(link: Link) -> None:
    """End every other request to the agent and the programs they run, whoever asked for them."""
    link.call("hangup", timeout=_PATIENCE)


def _milliseconds(seconds: float) -> int | None:
    return round(seconds * 1000) if seconds else None
