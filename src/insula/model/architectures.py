"""The architectures Insula knows, by Debian's names; the names others use for them are accepted."""

from __future__ import annotations

from insula.errors import UsageError

# Debian's name: (what the kernel's uname says, the machine part of a compiler's target)
ARCHITECTURES = {
    "amd64": ("x86_64", "x86_64"),
    "arm64": ("aarch64", "aarch64"),
    "i386": ("i686", "x86"),
    "riscv64": ("riscv64", "riscv64"),
    "s390x": ("s390x", "s390x"),
}

_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "x64": "amd64",
    "aarch64": "arm64",
    "i486": "i386",
    "i586": "i386",
    "i686": "i386",
    "x86": "i386",
}


def debian_architecture(name: str) -> str:
    """Debian's name for an architecture given by any of its names. Raises UsageError (``unknown_architecture``)."""
    lowered = name.lower()
    found = _ALIASES.get(lowered, lowered)
    if found not in ARCHITECTURES:
        raise UsageError(
            f"no architecture is called {name!r}",
            code="unknown_architecture",
            hint="the known ones are " + ", ".join(sorted(ARCHITECTURES)),
        )
    return found
