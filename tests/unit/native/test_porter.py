"""The porter outside the jail: it tells who started it, ends what is in the way, and calls who must be told of the end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from insula.host.process import find_program


class Started:
    """A porter at work, and the pipes by which it is watched."""

    def __init__(self, program: str, folder: Path, jail: Sequence[str], pass_fds: Sequence[int], options: Sequence[str]) -> None:
        self.ended = folder / "ended"
        self._heard = False
        os.mkfifo(self.ended)
        self._ended = os.open(self.ended, os.O_RDONLY | os.O_NONBLOCK)
        self.ready, ready = os.pipe()
        self.number = ready
        call = ["/bin/sh", "-c", f'ls -l /proc/self/fd >{folder}/fds; echo "$0 $HOME" >{self.ended}', "over"]
        words = [program, "porter", "--ready-fd", str(ready), *options, "--ended-argc", str(len(call)), *call, "--"]
        filled = [word.replace("READY", str(ready)) for word in jail]
        subprocess.run([*words, *filled], check=True, timeout=60, pass_fds=[ready, *pass_fds], env={"HOME": "/nowhere"})
        os.close(ready)

    def line(self) -> str:
        """What the porter tells who started it."""
        with os.fdopen(os.dup(self.ready), "rb") as stream:
            return stream.read().decode()

    def wait_ended(self) -> str:
        assert select.select([self._ended], [], [], 10)[0], "nobody was told of the end"
        self._heard = True
        return os.read(self._ended, 1000).decode()

    def told(self) -> bool:
        return bool(select.select([self._ended], [], [], 0)[0])

    def close(self) -> None:
        if not self._heard:
            self.wait_ended()
        self.hang_up()
        os.close(self._ended)

    def hang_up(self) -> None:
        if self.ready >= 0:
            os.close(self.ready)
        self.ready = -1


@pytest.fixture
def start(keeper_program: str, tmp_path: Path) -> Iterator:
    made: list[Started] = []

    def begin(*jail: str, pass_fds: Sequence[int] = (), options: Sequence[str] = ()) -> Started:
        made.append(Started(keeper_program, tmp_path, jail, pass_fds, options))
        return made[-1]

    yield begin
    for porter in made:
        porter.close()


def test_ready_and_the_end(start) -> None:
    porter = start("/bin/sh", "-c", "echo ready >/proc/self/fd/READY; echo noise >&2")
    assert porter.line() == "ready\n"
    assert porter.wait_ended() == "over /nowhere\n"


def test_a_jail_that_fails_is_heard(start) -> None:
    porter = start("/bin/sh", "-c", "echo 'bwrap: no permissions' >&2; printf 'try\\033 root' >&2; exit 1")
    assert porter.line() == "failed: bwrap: no permissions;try? root\n"
    assert porter.wait_ended()


def test_a_jail_that_is_not_there(start) -> None:
    porter = start("/nonexistent/bwrap", "x")
    assert porter.line() == "failed: cannot start /nonexistent/bwrap: No such file or directory\n"
    assert porter.wait_ended()


def test_what_the_inner_half_says_of_a_failure_counts(start) -> None:
    porter = start("/bin/sh", "-c", "echo noise >&2; echo failed: QEMU ended at once >/proc/self/fd/READY")
    assert porter.line() == "failed: QEMU ended at once\n"


def test_a_flood_of_words_is_cut(start) -> None:
    porter = start("/bin/sh", "-c", "yes | head -c 1000000 >&2; echo 'the last word' >&2; exit 1")
    line = porter.line()
    assert len(line) < 3000
    assert line.endswith("the last word\n")


def test_a_jail_that_says_nothing_is_ended_with_all_that_came_from_it(start, tmp_path: Path, gate: Path) -> None:
    """Also what left it, and what it began to say and did not finish."""
    words = f"(read -r x <{gate}) & setsid sh -c 'read -r x <{gate}' & printf ready >/proc/self/fd/READY; read -r x <{gate}"
    porter = start("/bin/sh", "-c", words, options=["--patience", "0.1"])
    assert porter.line() == "failed: not ready within 0.1 s\n"
    assert porter.wait_ended() == "over /nowhere\n"


def test_a_jail_that_cannot_say_anything_any_more_is_ended(start, gate: Path) -> None:
    words = f"import os; os.write(2, b'lost its way'); os.close(READY); open({str(gate)!r})"
    porter = start(sys.executable, "-c", words)
    assert porter.line() == "failed: lost its way\n"
    assert porter.wait_ended()


def pids_in(file: Path) -> list[int]:
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A fifo at which something waits until the test writes to it."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def test_signals_do_not_keep_it_from_telling(start, tmp_path: Path, gate: Path) -> None:
    porter = start("/bin/sh", "-c", f"echo $PPID >{tmp_path}/pid; echo ready >/proc/self/fd/READY; read -r x <{gate}")
    assert porter.line() == "ready\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM):
        os.kill(pids_in(tmp_path / "pid")[0], number)
    gate.write_text("go\n")
    assert porter.wait_ended()


def test_it_waits_for_all_that_came_from_the_jail(start, gate: Path) -> None:
    porter = start("/bin/sh", "-c", f"(read -r x <{gate}) & echo ready >/proc/self/fd/READY")
    assert porter.line() == "ready\n"
    assert not porter.told()
    gate.write_text("go\n")
    assert porter.wait_ended()


def test_the_caller_may_be_gone(start, gate: Path) -> None:
    porter = start("/bin/sh", "-c", f"read -r x <{gate}; echo ready >/proc/self/fd/READY")
    porter.hang_up()
    gate.write_text("go\n")
    assert porter.wait_ended()


def test_it_holds_nothing_of_the_jail(start, tmp_path: Path, gate: Path) -> None:
    with open(tmp_path / "disk", "w") as disk:
        words = f"echo $PPID >{tmp_path}/pid; ls -l /proc/self/fd >{tmp_path}/jail; "
        porter = start("/bin/sh", "-c", words + f"echo ready >/proc/self/fd/READY; read -r x <{gate}", pass_fds=[disk.fileno()])
    assert porter.line() == "ready\n"
    held = [os.readlink(entry) for entry in Path(f"/proc/{pids_in(tmp_path / 'pid')[0]}/fd").iterdir()]
    assert str(tmp_path / "disk") in (tmp_path / "jail").read_text()
    assert [name for name in held if name != "/dev/null" and not name.startswith("pipe:")] == []
    gate.write_text("go\n")
    assert porter.wait_ended()


def test_who_is_told_gets_a_clean_start(start, tmp_path: Path) -> None:
    porter = start("/bin/sh", "-c", "echo ready >/proc/self/fd/READY")
    assert porter.wait_ended() == "over /nowhere\n"
    lines = (tmp_path / "fds").read_text().splitlines()
    targets = {line.split(" -> ")[1] for line in lines if " -> " in line and "/proc/" not in line}
    assert targets == {"/dev/null", str(tmp_path / "fds")}


@pytest.mark.parametrize(
    "words",
    [[], ["--"], ["--ready-fd", "99", "--", "true"], ["--ready-fd", "x", "--", "true"], ["--ended-argc", "5", "a", "--", "true"],
     ["--ended-argc", "0", "--", "true"], ["--what", "1", "--", "true"],
     ["--patience", "0", "--", "true"], ["--patience", "soon", "--", "true"]],
)  # fmt: skip
def test_wrong_words_are_refused(keeper_program: str, words: list[str]) -> None:
    done = subprocess.run([keeper_program, "porter", *words], capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage:")


needs_bwrap = pytest.mark.skipif(find_program("bwrap") is None, reason="bubblewrap is not installed")


@needs_bwrap
def test_the_process_that_made_the_namespace_goes(start, tmp_path: Path, gate: Path) -> None:
    """bwrap's own process is ended, what it started becomes the porter's child, and its end is seen."""
    bwrap = ["bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--bind", "/", "/", "--dev", "/dev"]
    script = f"echo $$ >{tmp_path}/pid; echo ready 1 >/proc/self/fd/READY; read -r x <{gate}"
    porter = start("/bin/sh", "-c", f'echo $PPID $$ >{tmp_path}/outer; exec "$@"', "sh", *bwrap, "/bin/sh", "-c", script)
    assert porter.line() == "ready\n"
    above, monitor = pids_in(tmp_path / "outer")
    assert pids_in(tmp_path / "pid") == [1]
    children = Path(f"/proc/{above}/task/{above}/children")
    deadline = time.monotonic() + 30
    while monitor in pids_in(children):  # it was killed before we were told, and is being reaped
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (inner,) = pids_in(children)
    assert Path(f"/proc/{inner}/comm").read_text() == "sh\n"
    assert not porter.told()
    gate.write_text("go\n")
    assert porter.wait_ended()


def test_the_jail_is_put_into_its_groups_and_the_porter_is_not(start, tmp_path: Path) -> None:
    places = [tmp_path / "cpu.procs", tmp_path / "memory.procs"]
    for place in places:
        place.touch()
    doors = [os.open(place, os.O_WRONLY | os.O_APPEND) for place in places]
    words = [word for door in doors for word in ("--group", str(door))]
    porter = start(
        "/bin/sh", "-c", f"ls -l /proc/self/fd >{tmp_path}/inside; echo ready >/proc/self/fd/READY", pass_fds=doors, options=words
    )
    for door in doors:
        os.close(door)
    assert porter.line() == "ready\n"
    assert porter.wait_ended()
    assert [place.read_text() for place in places] == ["0", "0"]
    assert ".procs" not in (tmp_path / "inside").read_text()
    assert ".procs" not in (tmp_path / "fds").read_text()


def test_a_jail_that_cannot_enter_its_group_does_not_start(start, tmp_path: Path) -> None:
    door = os.open(tmp_path, os.O_RDONLY)
    porter = start("/bin/sh", "-c", "echo ready >/proc/self/fd/READY", pass_fds=[door], options=["--group", str(door)])
    os.close(door)
    assert porter.line().startswith("failed: cannot enter its control group: ")
    assert porter.wait_ended()


def test_the_jail_is_a_process_group_of_its_own_in_the_porters_session(start, tmp_path: Path) -> None:
    """So what it sends to its process group never reaches the porter."""
    porter = start("/bin/sh", "-c", f"cat /proc/$$/stat >{tmp_path}/stat; echo ready >/proc/self/fd/READY")
    assert porter.line() == "ready\n"
    assert porter.wait_ended()
    pid, _, _, _, group, session, *_ = (tmp_path / "stat").read_text().split()
    assert (group == pid, session == pid) == (True, False)
