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

# Debian's name: the number of the architecture in an ELF header (e_machine).
_MACHINES = {"amd64": 62, "arm64": 183, "i386": 3, "riscv64": 243, "s390x": 22}


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


def _run(words: list[str | Path], **environment: str) -> str:
    """What an installed program says, without our modules in its path."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that carries the compiled parts for all architectures, installed by pip into an environment of its own."""
    folder = tmp_path_factory.mktemp("everywhere")
    wheel = _build(folder / "wheel", INSULA_WHEEL_ARCHES="all")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", os.fspath(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", wheel], check=True)
    # The libraries Insula needs are those of the tests' environment: nothing is fetched.
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    return python


@pytest.mark.full
@pytest.mark.limit(1200)
@pytest.mark.parametrize("arch", sorted(_MACHINES))
@pytest.mark.parametrize("name", ["insula-agent", "insula-keeper"])
def test_parts_for_every_architecture_are_installed_and_used(everywhere: Path, name: str, arch: str, tmp_path: Path) -> None:
    program = f"from insula.host.native import native_path; print(native_path({name!r}, {arch!r}))"
    shown = Path(_run([everywhere, "-I", "-c", program], PATH=os.fspath(tmp_path), XDG_CACHE_HOME=os.fspath(tmp_path / "cache")))
    assert shown.parent.parts[-4:] == ("insula", "_native", "bin", arch)
    assert shown.is_relative_to(everywhere.parents[1])
    assert os.access(shown, os.X_OK)
    content = shown.read_bytes()
    assert content.startswith(b"\x7fELF")
    assert int.from_bytes(content[18:20], "big" if arch == "s390x" else "little") == _MACHINES[arch]
    assert b"/ld-" not in content, "not static"
    assert not (tmp_path / "cache").exists(), "something was built all the same"


@pytest.mark.full
@pytest.mark.limit(600)
def test_a_guest_runs_by_the_compiled_parts_of_the_wheel(everywhere: Path, tmp_path: Path) -> None:
    """No compiler is needed, and none is used: no part is built into the cache."""
    places = {"INSULA_HOME": os.fspath(tmp_path / "home"), "XDG_CACHE_HOME": os.fspath(tmp_path / "cache")}
    assert _run([everywhere.with_name("insula"), "run", "-q", "tiny", "--", "uname", "-s"], **places) == "Linux"
    assert not list((tmp_path / "cache").glob("insula/native-*"))
