"""AppArmor, where the host has it: which of its profiles the kernel knows.

Looked up and not tried: an order that the kernel refuses is a line in the host's log.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from insula.model.doctor import Fact, FactState

# A folder for each profile, by its name, a dot and a number; whoever may see it may be held by them.
_PROFILES: Final = "/sys/kernel/security/apparmor/policy/profiles"
_ENABLED: Final = "/sys/module/apparmor/parameters/enabled"


def is_loaded(profile: str, folder: str = _PROFILES) -> bool:
    """Whether the kernel knows ``profile``."""
    try:
        return any(name.rpartition(".")[0] == profile for name in os.listdir(folder))
    except OSError:
        return False


def fact(profile: str, source: Path, folder: str = _PROFILES, enabled: str = _ENABLED) -> Fact:
    """Are machines held by ``profile``, whose text is in the file ``source``?"""
    name = "AppArmor"
    if is_loaded(profile, folder):
        return Fact(name, FactState.OK, f"the profile {profile} holds machines, too")
    try:
        is_enabled = Path(enabled).read_text().strip() == "Y"
    except OSError:
        is_enabled = False
    if not is_enabled:
        return Fact(name, FactState.OK, "this kernel has none: machines' jails do without")
    place = "/etc/apparmor.d/insula"
    fix = f"sudo install -m 644 {source} {place} && sudo apparmor_parser -r {place}"
    return Fact(name, FactState.LIMITED, f"the profile {profile} is not loaded", "machines' jails have one wall fewer", fix)
