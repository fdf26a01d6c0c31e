"""Bad input: a clear error, the right exit code, and nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.framework.doors import run_cli


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("frobnicate",), 2, "No such command 'frobnicate'"),
        (("lst",), 2, "Did you mean list"),
        (("list", "--colour"), 2, "No such option"),
        (("start",), 2, "Missing argument"),
        (("create", "--cpus", "0", "tiny"), 2, "0 CPUs is not possible"),
        (("create", "--cpus", "many", "tiny"), 2, "not a valid integer"),
        (("create", "--memory", "1K", "tiny"), 2, "too little"),
        (("create", "--memory", "huge", "tiny"), 2, "'huge' is not a size"),
        (("create", "--disk", "0", "tiny"), 2, "not possible"),
        (("create", "--disk", "99999T", "tiny"), 2, "not possible"),
        (("create", "--network", "lan", "tiny"), 1, "no network named 'lan'"),
        (("create", "--network", "none", "--network", "nat", "tiny"), 2, "stands alone"),
        (("create", "-p", "80", "tiny"), 2, "names no ports"),
        (("create", "-p", "99999:1", "tiny"), 2, "names no ports"),
        (("create", "--rule", "deny everything", "tiny"), 2, "is no rule"),
        (("create", "--network", "nat,10.0.0.300", "tiny"), 2, "is no IPv4 address"),
        (("network", "create", "none"), 2, "cannot be a network's name"),
        (("network", "create", "x", "--subnet", "10.1.2.3/24"), 2, "is no IPv4 subnet"),
        (("network", "create", "x", "--mode", "bridge"), 2, "--parent"),
        pytest.param(
            ("network", "create", "x", "--mode", "bridge", "--parent", "nothing0"), 1, "nothing0", marks=pytest.mark.root
        ),
        (("network", "attach", "nat", "nobody"), 1, "no machine named 'nobody'"),
        (("network", "limit", "nobody", "--up", "fast"), 2, "is no rate"),
        (("firewall", "deny", "nobody", "to", "nowhere", "tcp", "0"), 2, "no port"),
        (("publish", "nobody", "8080:80"), 1, "no machine named 'nobody'"),
        (("create", "--name", "../../etc", "tiny"), 2, "cannot be a machine's name"),
        (("create", "--name", "UPPER", "tiny"), 2, "cannot be a machine's name"),
        (("create", "--name", "", "tiny"), 2, "the name is empty"),
        (("create", "debain"), 1, "no image or recipe named 'debain'"),
        (("start", "nobody"), 1, "no machine named 'nobody'"),
        (("show", "nobody"), 1, "no machine named 'nobody'"),
        (("delete", "--force", "nobody"), 1, "no machine named 'nobody'"),
        (("delete", "../images"), 1, "no machine named"),
        (("copy", "a", "b"), 2, "between this computer and one machine"),
        (("copy", "web:/a", "db:/b"), 2, "between this computer and one machine"),
        (("copy", "/x", "nobody:/x"), 1, "no"),
        (("image", "build", "./nothing.toml"), 1, "no recipe"),
        (("image", "delete", "nothing"), 1, "no image"),
        (("completion", "tcsh"), 2, "tcsh"),
        (("run", "debain", "--", "true"), 125, "no image or recipe named 'debain'"),
        (("run", "--cpus", "x", "tiny"), 125, "x"),
        (("exec", "nobody", "--", "true"), 125, "no machine named 'nobody'"),
        (("exec", "nobody"), 125, "Missing"),
        (("exec", "-e", "COLOUR", "nobody", "--", "true"), 125, "'COLOUR' sets nothing"),
        (("run", "-e", "=red", "tiny", "--", "true"), 125, "'=red' sets nothing"),
        (("shell", "nobody"), 125, "no machine named 'nobody'"),
    ],
)
def test_wrong_words_are_told_and_change_nothing(home: Path, words: tuple[str, ...], status: int, says: str) -> None:
    done = run_cli(home, *words)
    assert says in done.stderr.decode()
    assert done.returncode == status
    assert b"Traceback" not in done.stderr
    assert not list((home / "machines").glob("*")) if (home / "machines").exists() else True


def test_json_errors_are_one_line_with_a_stable_code(home: Path) -> None:
    done = run_cli(home, "start", "--json", "nobody")
    error = json.loads(done.stderr)
    assert done.stderr.count(b"\n") == 1
    assert (error["code"], done.returncode) == ("machine_not_found", 1)
    assert set(error) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("", "name: is missing"),
        ("name = ", "line 1"),
        ('name = "x"\nsuite = 13\n', "line 2: suite"),
        ('name = "x"\nsuite = "trixie"\ncolour = "red"\n[kernel]\npackage = "linux-image-cloud-amd64"\n', "line 3: colour"),
        ('name = "X Y"\nsuite = "trixie"\n[kernel]\npackage = "linux-image-cloud-amd64"\n', "line 1: name"),
    ],
)
def test_a_broken_recipe_is_told_by_line_and_key(home: Path, tmp_path: Path, recipe: str, says: str) -> None:
    path = tmp_path / "web.toml"
    path.write_text(recipe)
    done = run_cli(home, "image", "build", str(path))
    assert says in done.stderr.decode()
    assert done.returncode == 2


def test_a_recipe_that_is_no_text_is_told(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_bytes(b"\xff\xfe\x00")
    done = run_cli(home, "image", "build", str(path))
    assert done.returncode == 2
    assert str(path) in done.stderr.decode()


def test_a_home_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_cli(tmp_path / "file", "create", "tiny")
    assert done.returncode == 1
    assert "INSULA_HOME" in done.stderr.decode()


def test_one_bad_name_keeps_no_other_from_being_done(home: Path) -> None:
    done = run_cli(home, "start", "--json", "no1", "no2")
    codes = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert codes == ["no machine named 'no1'", "no machine named 'no2'"]
    assert (done.returncode, json.loads(done.stdout)) == (1, [])


def test_a_reader_that_leaves_is_met_with_silence(home: Path) -> None:
    import subprocess

    from tests.framework.doors import cli_command, cli_environment

    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "bash", *cli_command("image", "list")],
        env=cli_environment(home), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == b""


HOSTILE = ["../x", "../machines/real", "/etc", ".new-x", ".", "..", "", "-x", "real/", "real\n", "re\u202eal", "a" * 300]
# How each verb takes a name; what a verb is given besides it is harmless.
TAKING_A_NAME = {
    "exec": ("exec", "{}", "--", "true"),
    "shell": ("shell", "--", "{}"),
    "start": ("start", "--", "{}"),
    "stop": ("stop", "--", "{}"),
    "restart": ("restart", "--", "{}"),
    "pause": ("pause", "--", "{}"),
    "resume": ("resume", "--", "{}"),
    "delete": ("delete", "--force", "--", "{}"),
    "logs": ("logs", "--", "{}"),
    "events": ("events", "--", "{}"),
    "console": ("console", "--", "{}"),
    "show": ("show", "--", "{}"),
    "copy-in": ("copy", "--", "/etc/hostname", "{}:/x"),
    "copy-out": ("copy", "--", "{}:/x", "there"),
    "rename-from": ("rename", "--", "{}", "fresh"),
    "rename-to": ("rename", "--", "real", "{}"),
}


@pytest.fixture
def watched(home: Path) -> Path:
    """A home with what hostile names aim at: a machine's folder, and things beside the folder of machines."""
    for folder in ("machines/real", "machines/other", "x", "images"):
        (home / folder).mkdir(parents=True)
        (home / folder / "precious").write_text("data")
    return home


@pytest.mark.parametrize("verb", list(TAKING_A_NAME))
def test_hostile_names_touch_nothing(watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    machines = [path for path in watched.rglob("*") if path.name == "precious"]
    for hostile in HOSTILE:
        done = run_cli(watched, *(word.format(hostile) for word in TAKING_A_NAME[verb]))
        told = f"{verb} {hostile!r}: {done.returncode} {done.stderr!r}"
        assert done.returncode in ((125,) if verb in ("exec", "shell") else (1, 2)), told
        assert done.stderr.count(b"\n") <= 4, told
        assert b"Traceback" not in done.stderr, told
        assert "\u202e" not in done.stderr.decode(), told
        assert done.stdout == b"", told
        assert all(path.read_text() == "data" for path in machines), told
        assert {path.name for path in watched.iterdir()} <= {"machines", "x", "images", "host"}, told
        assert not (tmp_path / "there").exists(), told
