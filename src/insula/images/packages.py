"""Gets packages from the signed archive into the room: mmdebstrap, run as the room's root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from insula.host.process import require_program, run
from insula.images.mirror import Mirror, archive_lines, require_keyring
from insula.images.room import Room

Variant = Literal["extract", "apt"]

# Mirror lists are written by us; documentation of packages stays out, licences stay in.
DPKG_OPTIONS: Final = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
)


def bootstrap(
    room: Room,
    tree: str,
    *,
    variant: Variant,
    suite: str,
    arch: str,
    packages: Sequence[str],
    mirror: Mirror,
    extra_suites: Sequence[str] = (),
    hooks: Sequence[str] = (),
    fraction: float,
) -> None:
    """Fill the folder ``tree`` (of the room) with ``packages`` and all they need.

    ``extract`` only unpacks, ``apt`` installs a system around them. ``hooks`` are further arguments for mmdebstrap. Raises
    HostLacks (``keyring_missing``, ``archive_unreachable``, ``archive_untrusted``, ``no_space``), ChildFailed, Interrupted.
    """
    require_program("mmdebstrap")
    require_keyring()
    lines = archive_lines(mirror, suite, extra_suites)
    arguments = ["mmdebstrap", "--mode=root", f"--variant={variant}", "--format=directory", f"--architectures={arch}"]
    arguments += [f"--include={','.join(packages)}", f"--aptopt={_apt_options()}"]
    arguments += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    # A recipe's file stands where a package brings its own: the recipe's stays.
    arguments += ["--dpkgopt=force-confold", "--skip=chroot/mount/sys", *hooks, suite, tree]
    if lines:
        arguments.append("-")
    room.run(arguments, step="getting packages", fraction=fraction, data="\n".join(lines).encode() + b"\n" if lines else None)


def _apt_options() -> str:
    """apt's settings for the build: no recommendations, and the host's own proxy, if it has one."""
    options = 'APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "3"; '
    dump = run(["apt-config", "dump", "--format", '%f "%v"; ', "Acquire::http::Proxy", "Acquire::https::Proxy"], check=False)
    return options + dump.text.replace("\n", " ").strip()
