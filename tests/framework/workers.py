"""All the tests are done by several processes at once, a file at a time: each has a home, images and a folder of its own."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

_FOUND = "insula-left-behind"
# They share an image that takes a while to build.
_DEBIAN = frozenset(f"tests/functional/test_{name}.py" for name in ("debian", "readme", "twins"))


class _Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "debian" if file in _DEBIAN else file


def is_leader(config: pytest.Config) -> bool:
    """Whether this process only hands tests to others."""
    return bool(getattr(config.option, "numprocesses", None)) and not is_worker(config)


def is_worker(config: pytest.Config) -> bool:
    """Whether another process hands tests to this one."""
    return hasattr(config, "workerinput")


def tell_leader(config: pytest.Config, found: list[str]) -> None:
    """Have what a worker left behind reported with the rest."""
    output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]  # made by xdist
    output[_FOUND] = found


def report_left_behind(config: pytest.Config, found: list[str]) -> None:
    """As an error of the run."""
    report = pytest.TestReport(
        nodeid="nothing left behind",
        location=("tests/framework/leaks.py", 0, "nothing left behind"),
        keywords={},
        outcome="failed",
        longrepr="\n".join(found),
        when="teardown",
    )
    config.hook.pytest_runtest_logreport(report=report)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """A worker has ended."""
    if found := getattr(node, "workeroutput", {}).get(_FOUND):
        report_left_behind(node.config, found)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _Scheduling(config, log)
