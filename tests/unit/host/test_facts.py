"""The probes of this host answer, and leave nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.host import facts
from insula.model.doctor import Fact, FactState


@pytest.mark.parametrize("probe", facts.HOST_PROBES, ids=lambda probe: probe.name)
def test_probes_answer_and_explain_shortfalls(probe: facts.Probe) -> None:
    links = set(os.listdir("/sys/class/net"))
    for fact in probe.facts():
        assert fact.detail
        assert fact.state is FactState.OK or (fact.costs and fact.fix), fact
    assert set(os.listdir("/sys/class/net")) == links


def test_the_state_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    fact = facts.state_folder(tmp_path / "deep" / "home")
    assert fact.state is not FactState.MISSING
    assert list((tmp_path / "deep" / "home").iterdir()) == []


def test_a_state_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fact = facts.state_folder(tmp_path / "file" / "home")
    assert fact.state is FactState.MISSING
    assert "Not a directory" in fact.detail
    assert "INSULA_HOME" in fact.fix


@pytest.mark.parametrize(("free", "state"), [(1 << 29, FactState.MISSING), (2 << 30, FactState.LIMITED), (8 << 30, FactState.OK)])
def test_little_space_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: FactState) -> None:
    monkeypatch.setattr(facts, "free_bytes", lambda folder: free)
    assert facts.state_folder(tmp_path).state is state


def test_an_answer_rests_on_its_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    probe = facts.Probe("x", lambda: Fact("x", FactState.OK, "x"), (str(file),))
    before = probe.rests_on()
    assert probe.rests_on() == before
    file.touch()
    after = probe.rests_on()
    assert after != before
    file.chmod(0o600)
    assert probe.rests_on() != after
