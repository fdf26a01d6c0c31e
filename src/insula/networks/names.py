"""The running dnsmasq of each network: its files, its start, its end.

It is in a room of its own, where it sees nothing but its folder, and can write nothing; as root it is a user of its own. Files of
cards are dropped into folders that it watches; to forget one it is told to read them all anew. To follow other domains it is
started anew, which takes milliseconds and loses nothing: its leases follow from what it reads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from insula.errors import HostLacks
from insula.host.files import remove_tree
from insula.host.holder import ROOM, SERVER_RIGHTS, Holder, Program
from insula.host.process import require_program
from insula.host.watch import Watch
from insula.isolation.server import start_server
from insula.isolation.uids import service_id
from insula.model.network import NetworkSpec
from insula.networks import dns
from insula.networks.plan import Attached

_PREFIX: Final = "dnsmasq-"
_READABLE: Final = 0o644
_WALKABLE: Final = 0o755
_LAST_WORDS: Final = 300
_SERVES: Final = b"started, version"  # what dnsmasq says once it has its addresses
_PATIENCE: Final = 5.0  # seconds for it to say that; it takes some milliseconds
_LOOK: Final = 0.1  # seconds between two looks whether it has ended, of which nothing tells


def child_name(network: str) -> str:
    """What the holder knows a network's dnsmasq as."""
    return f"{_PREFIX}{network}"


def log_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def has_names(spec: NetworkSpec) -> bool:
    """Whether a network has a dnsmasq; on a bridged one the LAN's servers answer."""
    return spec.mode != "bridge"


def write_card(folder: Path, attached: Attached) -> None:
    """Let a card have its lease and its names. A running dnsmasq sees it at once."""
    for part, text in ((dns.CARDS, dns.card_file(attached)), (dns.NAMES, dns.names_file(attached))):
        _put(folder / part / attached.nic.key, text)


def drop_card(folder: Path, key: str) -> None:
    """Take them away. A running dnsmasq forgets them at `reread`."""
    for part in (dns.CARDS, dns.NAMES):
        with contextlib.suppress(FileNotFoundError):
            (folder / part / key).unlink()


def write_config(
    folder: Path, network: str, spec: NetworkSpec, cards: Collection[Attached], resolvers: Sequence[str], *, shared: bool
) -> bool:
    """Make a network's folder, if need be, and its configuration; whether that is another one than before."""
    for each in (folder, folder / dns.CARDS, folder / dns.NAMES):
        if not each.is_dir():
            each.mkdir()
            each.chmod(_WALKABLE)  # whatever the umask: the server is another user, and sees no folder above
    text = dns.dnsmasq_config(network, spec, ROOM, resolvers, dns.watched_domains(cards), shared=shared)
    path = folder / dns.CONFIG
    if path.exists() and path.read_text() == text:
        return False
    _put(path, text)
    return True


def write_lone(folder: Path, config: str) -> None:
    """Make the folder of a dnsmasq that reads its configuration and no more."""
    if not folder.is_dir():
        folder.mkdir()
        folder.chmod(_WALKABLE)
    _put(folder / dns.CONFIG, config)


def _put(path: Path, text: str) -> None:
    """In place whole, as dnsmasq reads a file the moment it appears."""
    temporary = path.parent.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(_READABLE)
    temporary.replace(path)


def start(holder: Holder, folder: Path, network: str, *, running: bool) -> None:
    """Start a network's dnsmasq, after ending the one that runs. Its bridge must be there. Does not wait until it serves."""
    name = child_name(network)
    if running:
        holder.stop(name)
    argv = (require_program("dnsmasq"), *dns.dnsmasq_argv(ROOM)[1:])
    program = Program(argv, uid=service_id(name), rights=SERVER_RIGHTS, folder=folder)
    log = os.open(log_file(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        start_server(holder, name, program, log)
    finally:
        os.close(log)


def start_anew(holder: Holder, folder: Path, network: str, *, running: bool) -> None:
    """As `start`, for where another may have served just now: until that one has ended, its address is taken and a new one ends
    at once. Returns when it serves, or never will."""
    end = time.monotonic() + _PATIENCE
    with Watch() as watch:
        watch.add(log_file(folder).parent)
        start(holder, folder, network, running=running)
        while _SERVES not in log_file(folder).read_bytes() and time.monotonic() < end:
            if child_name(network) not in holder.children():
                start(holder, folder, network, running=False)
            watch.wait_change(timeout=_LOOK)


def reread(holder: Holder, network: str) -> None:
    """Let it read the files of cards anew, and forget what is not there any more."""
    with contextlib.suppress(HostLacks):  # it is not there: whoever starts it reads them
        holder.signal(child_name(network), signal.SIGHUP)


def end(holder: Holder, folder: Path, network: str) -> None:
    """End a network's dnsmasq, and remove what it read."""
    holder.stop(child_name(network))
    remove_tree(folder)
    log_file(folder).unlink(missing_ok=True)


def why_ended(folder: Path) -> HostLacks:
    """What a dnsmasq that ended at once said."""
    return HostLacks(
        f"the network's name server ended at once: {last_words(log_file(folder))}",
        code="no_names",
        hint="run: insula network repair",
    )


def last_words(log: Path) -> str:
    """The end of what a program of ours printed; old versions of pasta complain of a missing system logger at each line."""
    lines: Sequence[str] = ()
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and "to syslog" not in line]
    return lines[-1][-_LAST_WORDS:] if lines else "it said nothing"
