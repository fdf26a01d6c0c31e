"""The one door for child processes.

Every program Insula starts goes through here: a clean environment, no shell, standard input closed unless given,
only the descriptors named, output kept, and a failure that prints a command which can be pasted.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from insula.errors import ChildFailed, HostLacks

_KEPT_ENVIRONMENT = ("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "http_proxy", "https_proxy", "no_proxy")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_WORDS = 8192
_POLITE = "10"  # nice(1): what is done behind yields to what somebody waits for


class Completed(msgspec.Struct, frozen=True):
    """What a finished child left behind."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment children get: a known PATH and locale, and of ours only what they need to find their way."""
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    environment |= {"PATH": _SYSTEM_PATH, "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}
    return environment | dict(extra or {})


def find_program(name: str) -> str | None:
    """The full path of a program on the children's PATH (which includes the sbin folders), or None."""
    if "/" in name:
        return name if os.access(name, os.X_OK) else None
    for folder in _SYSTEM_PATH.split(":"):
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    return None


def require_program(name: str) -> str:
    """Like find_program. Raises HostLacks (code ``program_missing``) when it is not there."""
    path = find_program(name)
    if path is None:
        raise HostLacks(f"the program '{name}' is not installed", code="program_missing", hint="run: insula doctor --fix")
    return path


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    data: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    pass_fds: Sequence[int] = (),
    check: bool = True,
) -> Completed:
    """Run a short-lived program to its end and keep its output.

    ``timeout`` is in seconds. Raises ChildFailed on a non-zero status (unless ``check`` is false) or when the time
    ran out, in which case the child has been killed and reaped.
    """
    words = tuple(os.fspath(word) for word in argv)
    words = (require_program(words[0]), *words[1:])
    child = subprocess.Popen(
        words,
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(env),
        cwd=cwd,
        pass_fds=pass_fds,
    )
    try:
        stdout, stderr = child.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        stdout, stderr = child.communicate()
        raise _failure(words, -signal.SIGKILL, stderr or stdout, f"took longer than {timeout:g} s") from None
    except BaseException:
        child.kill()
        child.wait()
        raise
    if check and child.returncode != 0:
        raise _failure(words, child.returncode, stderr or stdout)
    return Completed(words, child.returncode, stdout, stderr)


def _failure(words: Sequence[str], status: int, output: bytes, why: str | None = None) -> ChildFailed:
    name = os.path.basename(words[0])
    text = output[-_LAST_WORDS:].decode(errors="replace").strip()
    reason = why or (f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}")
    last = text.splitlines()[-1] if text else "it said nothing"
    return ChildFailed(
        f"{name} {reason}: {last}", command=shlex.join(words), status=status, output=text, hint=f"to see it: {shlex.join(words)}"
    )


class Child:
    """A program that runs beside us. Waits on its pidfd, so its end is seen at once whoever reaps it."""

    def __init__(self, popen: subprocess.Popen[bytes], words: Sequence[str]) -> None:
        self.argv = tuple(words)
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdin(self) -> int | None:
        return self._popen.stdin.fileno() if self._popen.stdin else None

    @property
    def stdout(self) -> int | None:
        return self._popen.stdout.fileno() if self._popen.stdout else None

    def fileno(self) -> int:
        """The pidfd: readable once the child ended."""
        return self._pidfd

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit status (negative: the signal), or None if ``timeout`` seconds passed first."""
        with self._lock:
            if self._popen.returncode is not None:
                return self._popen.returncode
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                return None
            return self._popen.wait()

    def signal(self, number: int) -> None:
        """Send a signal; harmless when the child has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def stop(self, patience: float = 2.0) -> int:
        """End the child: SIGTERM, ``patience`` seconds, then SIGKILL. Returns its status."""
        self.signal(signal.SIGTERM)
        status = self.wait(patience)
        if status is None:
            self.signal(signal.SIGKILL)
            status = self.wait()
        assert status is not None
        return status

    def close(self) -> None:
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.wait(0) is None:
            self.stop()
        self.close()


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    detached: bool = False,
) -> Child:
    """Start a program and return at once. ``detached``: in a session of its own, so that no terminal signal reaches it."""
    words = tuple(os.fspath(word) for word in argv)
    words = (require_program(words[0]), *words[1:])
    popen = subprocess.Popen(
        words,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=clean_environment(env),
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=detached,
    )
    return Child(popen, words)


def leave(argv: Sequence[str | os.PathLike[str]]) -> None:
    """Start a program that works on when we are gone, politely, and is nobody's child: nobody waits for it, nobody hears it."""
    with spawn(["setsid", "--fork", "nice", "-n", _POLITE, *argv]) as starter:
        starter.wait()
