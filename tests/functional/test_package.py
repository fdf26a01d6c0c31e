"""``pip install .`` gives the same ``insula`` as the clone, with the native sources and recipes inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from insula.host.native import native_digest
from insula.model.architectures import debian_architecture
from insula.version import __version__
from tests.framework.project import ROOT


def _build(folder: Path, **environment: str) -> Path:
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def _installed(wheel: Path, folder: Path) -> Path:
    """The wheel unpacked as an installer would, its script made by hand."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _python(folder: Path, program: str) -> str:
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder).stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _installed(_build(tmp_path_factory.mktemp("wheel")), tmp_path_factory.mktemp("installed"))


def test_the_command_is_the_same(installed: Path) -> None:
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "insula = insula.cli.main:main" in entry.read_text()
    assert (
        _python(installed, "sys.argv = ['insula', '--version']\nfrom insula.cli.main import main\nmain()")
        == f"insula {__version__}"
    )


def test_native_sources_are_inside_and_the_same(installed: Path) -> None:
    shown = _python(installed, "from insula.host import native; print(native.native_sources(), native.native_digest('agent'))")
    assert shown == f"{installed}/insula/_native/src {native_digest('agent')}"


def test_recipes_and_licence_are_inside(installed: Path) -> None:
    ours = {path.name for path in (ROOT / "src/insula/images/recipes").glob("*.toml")}
    assert ours
    assert {path.name for path in (installed / "insula/images/recipes").glob("*.toml")} == ours
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


@pytest.mark.limit(300)
def test_compiled_parts_travel_when_asked_for(tmp_path: Path) -> None:
    here = debian_architecture(os.uname().machine)
    wheel = _build(tmp_path / "wheel", INSULA_WHEEL_ARCHES=here)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo(f"insula/_native/bin/{here}/insula-agent").external_attr >> 16 & 0o777 == 0o755
    folder = _installed(wheel, tmp_path / "installed")
    shown = _python(folder, "from insula.host.native import native_path; print(native_path('insula-keeper'))")
    assert shown == f"{folder}/insula/_native/bin/{here}/insula-keeper"
    assert Path(shown).read_bytes().startswith(b"\x7fELF")
