"""Where packages come from: the Debian mirror this computer's own apt uses.

Formats: sources.list(5), one-line and deb822. Other distributions' and third parties' archives are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks

KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"

_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|duke|sid|oldstable|stable|testing|unstable)"
    r"(-updates|-security|-backports|-proposed-updates|/updates)?/?"
)


class Mirror(msgspec.Struct, frozen=True):
    """The URIs of Debian's main and security archives; None: whatever mmdebstrap takes by itself."""

    main: str | None = None
    security: str | None = None


class _Source(msgspec.Struct, frozen=True):
    uri: str
    suite: str
    components: tuple[str, ...]


def host_mirror(etc: Path = Path("/etc/apt")) -> Mirror:
    """The mirrors in this host's apt configuration: the first of each kind that can be reached by http or https."""
    main = security = None
    for source in _sources(etc):
        if (
            not source.uri.startswith(("http://", "https://"))
            or "main" not in source.components
            or not _SUITE.fullmatch(source.suite)
        ):
            continue
        # A name and password in the address are this host's secret, not for an image; apt's auth.conf is not read either.
        if "@" in source.uri.partition("://")[2].partition("/")[0]:
            continue
        if "security" in source.suite or source.suite.endswith("/updates"):
            security = security or source.uri
        else:
            main = main or source.uri
    return Mirror(main, security)


def _sources(etc: Path) -> Iterator[_Source]:
    files = [
        etc / "sources.list",
        *sorted((etc / "sources.list.d").glob("*.list")),
        *sorted((etc / "sources.list.d").glob("*.sources")),
    ]
    for path in files:
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        yield from _deb822(text) if path.suffix == ".sources" else _one_line(text.splitlines())


def _one_line(lines: Iterable[str]) -> Iterator[_Source]:
    for line in lines:
        words = re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb":
            yield _Source(words[1].rstrip("/"), words[2], tuple(words[3:]))


def _deb822(text: str) -> Iterator[_Source]:
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", uncommented):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield _Source(uri.rstrip("/"), suite, tuple(fields.get("components", "").split()))


def archive_lines(mirror: Mirror, suite: str, extra_suites: Iterable[str] = ()) -> list[str]:
    """``suite`` with its updates, security and ``extra_suites`` as lines of sources.list; empty without a known mirror."""
    if mirror.main is None:
        return []
    rolling = suite in ("sid", "unstable")
    suites = [suite] if rolling else [suite, f"{suite}-updates"]
    lines = [f"deb [signed-by={KEYRING}] {mirror.main} {name} main" for name in (*suites, *extra_suites)]
    if mirror.security is not None and not rolling:
        lines.append(f"deb [signed-by={KEYRING}] {mirror.security} {suite}-security main")
    return lines


def require_keyring() -> None:
    """Raises HostLacks (``keyring_missing``) when the keys that sign Debian's archive are not installed."""
    if not Path(KEYRING).exists():
        raise HostLacks(
            "Debian's archive keys are not installed", code="keyring_missing", hint="run: apt-get install debian-archive-keyring"
        )
