from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.errors import HostLacks
from insula.host import process
from insula.host.native import native_path
from insula.host.process import run
from insula.isolation.bare import Way, bare_argv, find_way, is_refusal, lacking, note_way, noted_way
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


@pytest.mark.parametrize(
    "words",
    [
        "bwrap: No permissions to creating new namespace, likely because the kernel does not allow it",
        "bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
        "bwrap: setting up uid map: Permission denied",
        "some warning\ncannot make a user namespace: Operation not permitted",
        "cannot make namespaces: Invalid argument\n",
    ],
)
def test_what_a_host_refuses_is_told_apart(words: str) -> None:
    assert is_refusal(words)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "bwrap: Creating new namespace failed: Resource temporarily unavailable",
        "bwrap: Can't mount tmpfs on /newroot: Cannot allocate memory",
        "cannot make a user namespace: Operation not permitted\ncannot fork: Cannot allocate memory",
    ],
)
def test_what_goes_by_is_no_refusal(words: str) -> None:
    assert not is_refusal(words)


def _bubblewrap(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """All that is found of this host's programs is a bubblewrap that does this."""
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\n{words}\n")
    program.chmod(0o755)
    monkeypatch.setattr(process, "_SYSTEM_PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("words", "said"), [("echo 'fork: Cannot allocate memory' >&2; exit 1", "fork: Cannot"), ("kill -KILL $$", "SIGKILL")]
)
def test_a_jail_that_could_not_be_tried_is_not_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    _bubblewrap(tmp_path, monkeypatch, words)
    with pytest.raises(HostLacks, match=f"it cannot be told what can be had.*{said}") as refusal:
        find_way(tmp_path, None, native_path("insula-keeper"))
    assert refusal.value.code == "jail_refused"


def test_one_that_the_host_refuses_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper finds no root there, whose place it is told, either."""
    _bubblewrap(tmp_path, monkeypatch, "echo 'setting up uid map: Permission denied' >&2; exit 1")
    with pytest.raises(HostLacks, match="cannot show it a file: No such file"):
        find_way(tmp_path / "nothing", None, native_path("insula-keeper"))
