"""What both kinds of images share: where the agent is inside, and what a build hands on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

# Where /sbin/insula-agent is: in Debian /sbin is a link to usr/sbin, in tiny all such folders are links to usr/bin.
SYSTEM_AGENT: Final = "usr/sbin/insula-agent"
DIRECT_AGENT: Final = "usr/bin/insula-agent"


class Built(msgspec.Struct, frozen=True):
    """``content``: the digest of all that was built, without the agent's bytes. ``kernel``: its release."""

    content: str
    kernel: str


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def guest_files() -> list[tuple[str, bytes]]:
    """What every system image gets besides packages: (path in the image, content) of all below ``images/guest``."""
    folder = Path(__file__).with_name("guest")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]


def guest_digest() -> str:
    """Changes whenever one of ``guest_files`` does."""
    return sha256(b"".join(f"{path} {sha256(content)}\n".encode() for path, content in guest_files()))
