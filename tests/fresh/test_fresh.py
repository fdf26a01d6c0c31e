"""A newcomer's two commands on fresh Debian systems: two of four kinds, the second command on one, or with ``--every`` on all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import insula
from tests.framework.points import points_of
from tests.fresh.system import USER, FreshSystem, make_system

ALL = [("bookworm", "root"), ("bookworm", USER), ("trixie", USER), ("trixie", "root")]
# What ./test may take, seconds, before it counts as hanging: it has two cores at best, and other tests beside it.
_PATIENCE = 4800.0

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.limit(5400)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "system" in metafunc.fixturenames:
        points = points_of(metafunc.config, "fresh systems", long=True)
        chosen = points.choose(ALL, 2)
        if metafunc.function is test_the_tests_pass:  # which takes longer than all else
            chosen = points.choose(chosen, 1)
        metafunc.parametrize("system", chosen, ids="-".join, indirect=True, scope="module")


@pytest.fixture(scope="module")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FreshSystem:
    suite, user = request.param
    return make_system(suite, user, tmp_path_factory.mktemp("fresh"))


def test_without_privileges_the_exact_command_is_told(system: FreshSystem) -> None:
    if system.user == "root":
        pytest.skip("root is not asked")
    said = system.run("./insula", "run", "debian", "--", "true")
    assert said.status == 125
    assert "python3-venv" in said.stderr
    assert "run as root: apt-get " in said.stderr


def test_a_command_runs_in_a_guest(system: FreshSystem) -> None:
    said = system.run_with_an_administrator("./insula", "run", "debian", "--", "uname", "-a")
    assert said.status == 0, said.stderr
    assert said.stdout.startswith("Linux ")
    assert "Debian" in said.stdout
    assert len(said.stdout.splitlines()) == 1, "something else was written where the guest's answer belongs"
    if "bookworm" in system.root.name:
        # Said plainly by whoever installed it, or had it installed.
        assert (system.root / "etc/apt/preferences.d/insula-backports").exists()
    again = system.run("./insula", "run", "debian", "--", "sh", "-c", "exit 42")
    assert again.status == 42, again.stderr
    assert system.run("./insula", "list", "--json").stdout.strip() == "[]"


def test_an_image_is_the_same_as_built_here(system: FreshSystem, tiny: str) -> None:
    said = system.run_with_an_administrator("./insula", "image", "build", "tiny")
    assert said.status == 0, said.stderr
    shown = system.run("./insula", "image", "show", "--json", "tiny")
    assert json.loads(shown.stdout)["digest"] == insula.connect().build(tiny).digest


def test_the_tests_pass(system: FreshSystem) -> None:
    """The newcomer's second command, as it stands: guests and all."""
    said = system.run_with_an_administrator("./test", "-q", timeout=_PATIENCE)
    assert said.status == 0, said.stdout[-12000:] + said.stderr[-4000:]
    assert " passed" in said.stdout.splitlines()[-1]
    assert "not installed" not in said.stdout, "it sets up what it needs, so none is skipped for that"


def test_the_clone_is_as_it_was(system: FreshSystem, tmp_path: Path) -> None:
    assert system.written_into_the_clone() == ""
