from __future__ import annotations

from pathlib import Path

import pytest

from insula.host import apparmor
from insula.isolation.jail import LABEL, PROFILES
from insula.model.doctor import FactState


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    folder = tmp_path / "profiles"
    for name in ("insula-jailed.4", "usr.bin.man.12"):
        (folder / name).mkdir(parents=True)
    return folder


def test_a_profile_is_known_by_its_whole_name(profiles: Path) -> None:
    assert apparmor.is_loaded("insula-jailed", str(profiles))
    assert apparmor.is_loaded("usr.bin.man", str(profiles))
    assert not apparmor.is_loaded("insula-jail", str(profiles))
    assert not apparmor.is_loaded("insula-jail", str(profiles / "nowhere"))


@pytest.mark.parametrize(
    ("switch", "profile", "state"),
    [("Y\n", "insula-jailed", FactState.OK), ("Y\n", "insula-jail", FactState.LIMITED), ("N\n", "insula-jail", FactState.OK)],
)
def test_who_has_it_and_not_the_profile_is_told_what_loads_it(
    profiles: Path, tmp_path: Path, switch: str, profile: str, state: FactState
) -> None:
    (tmp_path / "enabled").write_text(switch)
    fact = apparmor.fact(profile, Path("/shipped/insula"), str(profiles), str(tmp_path / "enabled"))
    assert fact.state is state
    assert ("/shipped/insula" in fact.fix and "apparmor_parser" in fact.fix) == (state is FactState.LIMITED)


def test_the_profiles_are_shipped() -> None:
    text = PROFILES.read_text()
    assert f"profile {LABEL} " in text
    assert "profile insula-machine " in text
