"""What both kinds of images share: where the agent is inside, and what a build hands on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

AGENT_PATH: Final = "usr/lib/insula/insula-agent"


@dataclass(frozen=True, slots=True)
class Built:
    """``content``: the digest of all that was built, without the agent's bytes. ``kernel``: its release."""

    content: str
    kernel: str


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
