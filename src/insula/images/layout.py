"""What both kinds of images share: where the agent is inside, and what a build hands on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

# Where /sbin/insula-agent is: in Debian /sbin is a link to usr/sbin, in tiny all such folders are links to usr/bin.
SYSTEM_AGENT: Final = "usr/sbin/insula-agent"
DIRECT_AGENT: Final = "usr/bin/insula-agent"


@dataclass(frozen=True, slots=True)
class Built:
    """``content``: the digest of all that was built, without the agent's bytes. ``kernel``: its release."""

    content: str
    kernel: str


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
