"""The packet filter, through nft(8): what one call loads is one transaction, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from insula.errors import ChildFailed, HostLacks
from insula.host.holder import Spaces
from insula.host.process import Completed, run

_PATIENCE: Final = 60.0  # seconds; thousands of rules take less than one


def apply(commands: Sequence[str], spaces: Spaces | None = None) -> None:
    """Carry out ``commands``, each a line of nft's language, in ``spaces`` or here. Raises HostLacks (``rules_refused``)."""
    if commands:
        _nft(["-f", "-"], spaces, "".join(f"{command}\n" for command in commands).encode())


def objects(spaces: Spaces | None, *words: str) -> list[dict[str, Any]]:
    """What ``nft -j list WORDS`` tells, as objects of one key each (``{"counter": {…}}``); of what is not there nothing."""
    try:
        listing = json.loads(_nft(["-j", "list", *words], spaces).stdout or b"{}")
    except HostLacks as refusal:
        if "No such file or directory" in refusal.message:
            return []
        raise
    return [each for each in listing.get("nftables", []) if "metainfo" not in each]


def _nft(words: Sequence[str], spaces: Spaces | None, data: bytes | None = None) -> Completed:
    inside = spaces.enter() if spaces is not None else []
    try:
        descriptors = spaces.descriptors() if spaces is not None else ()
        return run([*inside, "nft", *words], data=data, pass_fds=descriptors, timeout=_PATIENCE)
    except ChildFailed as failure:
        lines = [line for line in failure.output.splitlines() if "Error:" in line] or [failure.message]
        raise HostLacks(
            f"this host's packet filter refused our rules: {lines[0]}", code="rules_refused", hint="to see why: insula doctor"
        ) from failure
