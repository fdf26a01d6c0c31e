from __future__ import annotations

import os
from pathlib import Path

from insula.host.native import native_path
from insula.host.process import run
from insula.isolation.bare import Way, bare_argv, lacking, note_way, noted_way
from insula.isolation.jail import Jail

ROOT, KEEPER = Path("/cache/root"), Path("/cache/insula-keeper")


def test_a_way_that_has_namespaces_has_the_root_and_what_is_shown() -> None:
    jail = Jail(ROOT, 1_000_000_007, (7,), shown=((Path("/machine/kernel"), "/boot/kernel"),), calls=9)
    words = bare_argv(Way.USER, jail, KEEPER, ["/keeper", "inner"])
    assert words[words.index("--") + 1 :] == [
        *(str(KEEPER), "bare", "--way", "user", "--root", "/cache/root", "--show", "/dev/null", "/cache/root/dev/null"),
        *("--show", "/machine/kernel", "/cache/root/boot/kernel", "--uid", "1000000007", "--member", "7", "--calls", "9"),
        *("--", "/keeper", "inner"),
    ]
    assert words[: words.index("--")] == [
        "/cache/insula-keeper",
        "enter",
        "--core=0",
        "--nofile=1024",
        "--memlock=0",
        "--nproc=512",
    ]


def test_without_namespaces_nothing_is_mounted() -> None:
    words = bare_argv(Way.NONE, Jail(ROOT, shown=((Path("/machine/kernel"), "/boot/kernel"),)), KEEPER, ["/keeper"])
    assert words[words.index("--") + 1 :] == [str(KEEPER), "bare", "--way", "none", "--", "/keeper"]


def test_how_it_runs_is_noted_where_it_runs(tmp_path: Path) -> None:
    assert noted_way(tmp_path) is None
    assert lacking(tmp_path / "gone") is None
    note_way(tmp_path, Way.ROOT)
    assert noted_way(tmp_path) is Way.ROOT
    assert lacking(tmp_path) == "a user namespace"


def test_in_any_case_there_are_no_rights_to_be_had() -> None:
    uid = 1_000_000_007 if os.geteuid() == 0 else None
    words = bare_argv(Way.NONE, Jail(ROOT, uid), native_path("insula-keeper"), ["/usr/bin/cat", "/proc/self/status"])
    status = dict(line.split(":\t", 1) for line in run(words).text.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapInh"], 16) == 0
    if uid is not None:
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(uid)}
        assert status["Groups"].split() == []
        assert int(status["CapBnd"], 16) == 0
