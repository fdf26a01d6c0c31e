"""A Debian guest with Insula in it, for what this host has not and Debian has (control groups of version 2, AppArmor)."""

from __future__ import annotations

import contextlib
import io
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

import insula
from tests.framework.project import ROOT

# The release whose Python takes the compiled parts of ours, and where that has a QEMU that is new enough.
_RELEASES = {(3, 11): ("debian-12.toml", "/bookworm-backports"), (3, 13): ("debian.toml", "")}
HAS_RELEASE = sys.version_info[:2] in _RELEASES
WITHOUT = "no Debian has this Python, whose libraries are tried there"
SOURCES = "/opt/insula"


@contextlib.contextmanager
def debian_with_insula(
    home: Path,
    name: str,
    memory: str,
    packages: Sequence[str] = (),
    newest: Sequence[str] = (),
    files: Mapping[Path, str] | None = None,
) -> Iterator[insula.Machine]:
    """A machine of an image of that ``name``, which has Python, ``packages``, and the ``newest`` of others. In `SOURCES` are
    Insula and, at the places they are mapped to, ``files``."""
    file, suite = _RELEASES[sys.version_info[:2]]
    recipe = (ROOT / "src/insula/images/recipes" / file).read_text()
    lines = [line for line in recipe.splitlines() if not line.startswith(("name =", "aliases ="))]
    wanted = "".join(f'"{each}", ' for each in ("python3", *packages, *(f"{each}{suite}" for each in newest)))
    here = insula.connect(home)
    here.build("", text="\n".join([f'name = "{name}"', *lines]).replace("packages = [", f"packages = [ {wanted}", 1))
    with here.run(name, memory=memory, network="none", cold=True) as machine:
        machine.exec("tar", "-C", "/", "-x", input=_packed(files or {}), check=True)
        yield machine


def _packed(files: Mapping[Path, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for source, name in {ROOT / "src/insula": "insula", Path(msgspec.__file__).parent: "msgspec", **files}.items():
            archive.add(source, f"{SOURCES}/{name}"[1:], filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return packed.getvalue()
