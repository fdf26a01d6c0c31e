"""What holds for every test: a folder of its own for the run, a time limit for each test, and nothing left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from insula.errors import InsulaError
from insula.host.namespaces import remove_handed_over
from insula.networks import switches
from tests.framework import leaks, workers
from tests.framework.caches import cache_folder
from tests.framework.project import ROOT

pytest_plugins = ["tests.framework.guests", "tests.framework.points"]

_LIMIT = 180.0  # seconds for a test, so that one that hangs is told on a busy machine, too; marked ones may take longer
_EVERY_LIMIT = 12 * 3600.0  # for one that tries all of its points, with --every
_FIXTURE_LIMIT = 1800.0  # a fixture may build an image
_TEARDOWN_LIMIT = 600.0  # what a test leaves is taken down
_AGAIN = 20.0  # seconds until an alarm rings again: what it interrupted may wait anew while it is left

_folder = pytest.StashKey[Path]()
_before = pytest.StashKey[leaks.HostState | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="also run the long tests: fuzzing, soak, power cuts, foreign builds, fresh systems"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Point everything at the run's own folder before any test module is imported."""
    config.pluginmanager.register(workers)
    _choose_examples(config)
    token = secrets.token_hex(6)
    base = Path(os.environ.get("TMPDIR") or "/var/tmp")
    folder = Path(tempfile.mkdtemp(prefix=f"insula-test-{token}-", dir=base))
    config.stash[_folder] = folder
    if config.option.basetemp is None or workers.is_worker(config):
        config.option.basetemp = str(folder / "tests")
    config.stash[_before] = None if workers.is_worker(config) else _host_before()
    if workers.is_leader(config):
        return  # those who are handed the tests have tokens and folders of their own
    os.environ |= {
        leaks.MARKER: token,
        "TMPDIR": str(folder),
        "INSULA_HOME": str(folder / "home"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
        # A test may start Python with our modules; it must not write compiled ones into the clone.
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONPYCACHEPREFIX": sys.pycache_prefix or str(cache_folder("pycache")),
    }
    tempfile.tempdir = None


def _host_before() -> leaks.HostState:
    """This host as it is to be found again: without what a run that was killed had turned."""
    if os.geteuid() == 0:
        switches.turn_back()
    return leaks.host_state()


def _choose_examples(config: pytest.Config) -> None:
    """The same ones in each short run, new ones in long runs. How long one takes says how busy the computer is, no more."""
    settings.register_profile(
        "insula",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=not config.getoption("--full"),
        print_blob=True,
    )
    settings.load_profile("insula")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    long = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs to be root")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    with _time_limit(_FIXTURE_LIMIT, f"fixture {fixturedef.argname}"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("limit")
    limit = max(_LIMIT, marker.args[0]) if marker else _LIMIT
    if item.config.getoption("--every") and "points" in getattr(item, "fixturenames", ()):
        limit = _EVERY_LIMIT
    with _time_limit(limit, "the test"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    with _time_limit(_TEARDOWN_LIMIT, "taking down"):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look for what was left behind; it counts as an error of the run. All fixtures are down by now."""
    config = session.config
    folder = config.stash[_folder]
    found = leaks.left_behind(folder, os.environ.get(leaks.MARKER, "nobody's"), config.stash[_before])
    if not found and not os.environ.get("INSULA_TEST_KEEP"):
        found = _remove(folder)
    if not found:
        return
    found.append(f"(the run's folder is {folder})")
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if workers.is_worker(config):
        workers.tell_leader(config, found)
    else:
        workers.report_left_behind(config, found)


@pytest.fixture(scope="session")
def run_folder(pytestconfig: pytest.Config) -> Path:
    """The folder of this run: everything the tests write is below it, and it is gone afterwards."""
    return pytestconfig.stash[_folder]


def _remove(folder: Path) -> list[str]:
    """Delete the run's folder; a line for what cannot be."""
    try:
        if os.geteuid() == 0:
            shutil.rmtree(folder)
        else:
            remove_handed_over(folder)  # an agent that is root of a namespace made files with ids of that
    except (OSError, InsulaError) as refusal:
        return [f"files: {refusal}"]
    return []


class _time_limit:  # noqa: N801 - used like a function
    """Fail what takes longer than ``seconds``: an alarm raises in the main thread, whatever it is waiting for."""

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds, self._what = seconds, what

    def __enter__(self) -> None:
        self._handler = signal.signal(signal.SIGALRM, self._ring)
        self._outer = signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN)[0]

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._outer, _AGAIN)
        signal.signal(signal.SIGALRM, self._handler)

    def _ring(self, *_: object) -> NoReturn:
        pytest.fail(f"{self._what} took longer than {self._seconds:g} s")
