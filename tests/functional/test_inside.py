"""Reaching inside a running guest: commands, streams, files, console, logs."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.cli.inside import console_words
from tests.framework.consoles import wait_said
from tests.framework.doors import CliDoor, Door, Refused, cli_command, cli_environment, popen_cli, run_cli

pytestmark = pytest.mark.limit(120)


def test_output_errors_and_code_come_apart(door: Door, shared: str) -> None:
    ran = door.exec(shared, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert ran == (3, b"out\n", b"err\n")


def test_a_signal_is_128_and_its_number(door: Door, shared: str) -> None:
    assert door.exec(shared, "sh", "-c", "kill -TERM $$").code == 128 + signal.SIGTERM


def test_input_environment_user_and_folder_are_passed(door: Door, shared: str) -> None:
    script = "cat; echo $COLOUR; id -u; pwd"
    ran = door.exec(shared, "sh", "-c", script, data=b"in\n", env={"COLOUR": "a b=c"}, user="65534", cwd="/tmp")
    assert ran == (0, b"in\na b=c\n65534\n/tmp\n", b"")


def test_large_binary_streams_pass_unchanged_both_ways(door: Door, shared: str) -> None:
    data = os.urandom(3 << 20)
    assert door.exec(shared, "cat", data=data).stdout == data


def test_output_that_is_no_utf8_passes_unchanged(door: Door, shared: str) -> None:
    assert door.exec(shared, "printf", r"\377\000\200").stdout == b"\xff\x00\x80"


@pytest.mark.parametrize(
    ("argv", "code", "status"),
    [
        (("/no/such",), "command_not_found", 127),
        (("nosuch",), "command_not_found", 127),
        (("/etc",), "command_not_executable", 126),
    ],
)
def test_what_cannot_run_is_told_apart(door: Door, shared: str, argv: tuple[str, ...], code: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        door.exec(shared, *argv)
    assert refused.value.code == code
    if isinstance(door, CliDoor):
        assert refused.value.status == status


@pytest.mark.parametrize(
    ("options", "code"), [({"user": "nobody-here"}, "no_such_user"), ({"cwd": "/nowhere"}, "no_such_folder")]
)
def test_an_unknown_user_or_folder_is_told(door: Door, shared: str, options: dict[str, str], code: str) -> None:
    with pytest.raises(Refused) as refused:
        door.exec(shared, "true", **options)  # type: ignore[arg-type]  # user and cwd, one at a time
    assert refused.value.code == code


def test_a_command_line_killed_hangs_up_what_it_ran(shared: str, home: Path) -> None:
    with popen_cli(home, "exec", shared, "--", "sh", "-c", "echo $$; exec sleep 1000") as child:
        assert child.stdout is not None
        pid = child.stdout.readline().decode().strip()
        child.kill()
    gone = f"for i in $(seq 50); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    done = run_cli(home, "exec", shared, "--", "sh", "-c", gone)
    assert done.returncode == 0


def test_signals_reach_the_command(shared: str, home: Path) -> None:
    script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with popen_cli(home, "exec", shared, "--", "sh", "-c", script) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == b"caught\n"
    assert child.returncode == 9


def test_without_i_input_is_at_its_end(shared: str, home: Path) -> None:
    done = run_cli(home, "exec", shared, "--", "cat", data=b"not for the guest")
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams_do_no_harm(shared: str, home: Path, closed: int) -> None:
    command = cli_command("exec", "-i", shared, "--", "sh", "-c", "echo x; echo y >&2; exit 4")
    child = subprocess.run(
        ["sh", "-c", f'exec {closed}<&-; exec "$@"', "sh", *command],
        env=cli_environment(home), capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=60,
    )  # fmt: skip
    assert child.returncode == 4


def test_a_reader_that_leaves_ends_the_command(shared: str, home: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -c 10', "sh", *cli_command("exec", shared, "--", "yes")],
        env=cli_environment(home), capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"y\n" * 5


def test_eight_commands_a_slow_one_and_a_shell_run_side_by_side(door: Door, shared: str) -> None:
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        results[number] = door.exec(shared, "sh", "-c", f"head -c 300000 /dev/zero | wc -c; echo {number}").stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with _shell(door.home, shared) as (shell, terminal), popen_cli(door.home, "exec", shared, "--", "cat", "/dev/zero") as slow:
        _type(terminal, "echo fir''st", b"first\r\n")
        for thread in threads:
            thread.start()
        # While they work: what is typed is answered, and the terminal's lines stay whole.
        for number in range(10):
            _type(terminal, f"echo li''ne-{number}-$((1000 + {number}))", f"line-{number}-{1000 + number}\r\n".encode())
        for thread in threads:
            thread.join()
        _type(terminal, "tty", b"/dev/pts/")
        slow.kill()
        os.write(terminal, b"exit 5\r")
        assert shell.wait(30) == 5
    assert results == {number: f"300000\n{number}\n".encode() for number in range(8)}


@contextlib.contextmanager
def _shell(home: Path, machine: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`insula shell` at a terminal, and the end of it that a person sits at."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        cli_command("shell", machine), env=cli_environment(home), stdin=theirs, stdout=theirs, stderr=theirs
    )  # fmt: skip
    os.close(theirs)
    try:
        yield child, ours
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def _type(terminal: int, line: str, wanted: bytes) -> None:
    """Type a line and read until what is wanted was said (what is typed is written so that its echo is not that)."""
    os.write(terminal, line.encode() + b"\r")
    seen = b""
    while wanted not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 65536)


def test_files_go_in_and_come_out_with_modes_links_and_folders(door: Door, shared: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(os.urandom(100_000))
    (tree / "sub" / "file").chmod(0o640)
    (tree / "script").write_text("#!/bin/sh\necho ran\n")
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("sub/file")
    (tree / "empty").touch()
    os.link(tree / "script", tree / "hard")
    place = f"/root/{tmp_path.name}-{type(door).__name__}"
    door.put(shared, [tree], place)
    assert door.exec(shared, f"{place}/script").stdout == b"ran\n"
    assert door.exec(shared, "readlink", f"{place}/link").stdout == b"sub/file\n"
    door.get(shared, [place], tmp_path / "back")
    back = tmp_path / "back"
    assert (back / "sub" / "file").read_bytes() == (tree / "sub" / "file").read_bytes()
    assert (back / "sub" / "file").stat().st_mode & 0o777 == 0o640
    assert (back / "link").readlink() == Path("sub/file")
    assert (back / "hard").stat().st_ino == (back / "script").stat().st_ino
    assert (back / "empty").read_bytes() == b""


def test_a_missing_file_of_the_guest_is_told(door: Door, shared: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        door.get(shared, ["/no/such/file"], tmp_path / "x")
    assert refused.value.code == "no_such_file"
    assert "/no/such/file" in refused.value.message
    assert not (tmp_path / "x").exists()


def test_logs_hold_what_the_console_printed(door: Door, shared: str) -> None:
    door.exec(shared, "sh", "-c", "echo a-mark-on-the-console > /dev/console")
    assert b"a-mark-on-the-console" in door.logs(shared)


def test_events_tell_the_life(door: Door, shared: str) -> None:
    events = [event["event"] for event in door.events(shared)]
    assert events[0] in ("created", "forked")
    assert "started" in events


def test_the_console_works_both_ways(shared: str, home: Path) -> None:
    with popen_cli(home, "console", shared, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        wait_said(child, b"seen-live", lambda: run_cli(home, "exec", shared, "--", "sh", "-c", "echo seen-live > /dev/console"))
        child.kill()


def test_a_console_ends_with_its_input(shared: str, home: Path) -> None:
    run_cli(home, "exec", shared, "--", "sh", "-c", "echo said-before > /dev/console")
    while b"said-before" not in (ended := run_cli(home, "console", shared)).stdout:  # the guest's bytes may still be on their way
        assert ended.returncode == 0
    assert run_cli(home, "console", shared, data=b"\n").returncode == 0


def test_attaching_on_a_terminal_tells_how_to_leave_and_to_log_in(shared: str, home: Path) -> None:
    ours, theirs = pty.openpty()
    with popen_cli(home, "console", shared, stdin=theirs, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline().decode() == console_words(shared, direct=True) + "\n"
        child.kill()
    os.close(ours)
    os.close(theirs)
    assert "Ctrl-]; nobody can log in there, use: insula shell" in console_words(shared, direct=True)
    assert f"give root a password: insula exec -it {shared} -- passwd" in console_words(shared, direct=False)


def test_a_terminal_has_a_size_and_is_one(shared: str, home: Path) -> None:
    import tty

    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    os.set_inheritable(theirs, True)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    child = subprocess.Popen(
        cli_command("exec", "-it", shared, "--", "sh", "-c", "stty size; tty; read x; echo got $x"),
        env=cli_environment(home), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"/dev/pts" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"word\r")
    while b"got word" not in seen:
        seen += os.read(ours, 4096)
    assert child.wait(30) == 0
    assert b"33 99" in seen
    os.close(ours)
