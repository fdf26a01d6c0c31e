from __future__ import annotations

from pathlib import Path

import pytest

from insula.engines.fake.engine import TEST_RUN
from insula.engines.load import load_engine
from insula.errors import UsageError
from insula.store.names import Home


def test_the_fake_refuses_to_load_outside_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_engine("fake", Home(tmp_path)).name == "fake"
    monkeypatch.delenv(TEST_RUN)
    with pytest.raises(RuntimeError, match="tests only"):
        load_engine("fake", Home(tmp_path))


def test_an_engine_nobody_wrote(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'xen'"):
        load_engine("xen", Home(tmp_path))
