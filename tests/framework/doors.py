"""The two doors into Insula, with the same handle on both: a test written once goes through the SDK and through the CLI."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec

import insula
from insula.errors import InsulaError


class Ran(NamedTuple):
    """How a command in a guest ended."""

    code: int
    stdout: bytes
    stderr: bytes


class Refused(Exception):
    """Insula said no. ``status`` is the exit code (of the class, through the SDK)."""

    def __init__(self, code: str, message: str, hint: str | None, status: int) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.hint = hint
        self.status = status


class Door(Protocol):
    """What tests do to machines."""

    home: Path

    def run(self, image: str, name: str, **shape: Any) -> None: ...
    def create(self, image: str, name: str, **shape: Any) -> None: ...
    def verb(self, verb: str, name: str, *, force: bool = False) -> None: ...
    def rename(self, name: str, new_name: str) -> None: ...
    def exec(
        self,
        name: str,
        *argv: str,
        data: bytes | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
    ) -> Ran: ...
    def list(self) -> list[dict[str, Any]]: ...
    def show(self, name: str) -> dict[str, Any]: ...
    def put(self, name: str, sources: Sequence[Path], destination: str) -> None: ...
    def get(self, name: str, sources: Sequence[str], destination: Path) -> None: ...
    def logs(self, name: str) -> bytes: ...
    def events(self, name: str) -> Sequence[dict[str, Any]]: ...
    def snapshot(self, name: str, snapshot: str = "", description: str = "") -> str: ...
    def snapshots(self, name: str) -> Sequence[dict[str, Any]]: ...
    def restore(self, name: str, snapshot: str, *, keep: bool = True) -> None: ...
    def delete_snapshot(self, name: str, snapshot: str) -> None: ...
    def fork(self, name: str, snapshot: str = "", *, count: int = 1, pattern: str) -> Sequence[str]: ...
    def clone(self, name: str, new_name: str, *, full: bool = False) -> None: ...


class SdkDoor:
    """Through `import insula`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._insula = insula.connect(home)

    def _do(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return work(*args, **kwargs)
        except InsulaError as error:
            raise Refused(error.code, error.message, error.hint, error.exit_code) from error

    def _machine(self, name: str) -> insula.Machine:
        machine: insula.Machine = self._do(self._insula.get, name)
        return machine

    def run(self, image: str, name: str, **shape: Any) -> None:
        self._do(self._insula.run, image, name=name, **shape)

    def create(self, image: str, name: str, **shape: Any) -> None:
        self._do(self._insula.create, image, name=name, **shape)

    def verb(self, verb: str, name: str, *, force: bool = False) -> None:
        self._do(getattr(self._machine(name), verb), **({"force": True} if force else {}))

    def rename(self, name: str, new_name: str) -> None:
        self._do(self._machine(name).rename, new_name)

    def exec(
        self,
        name: str,
        *argv: str,
        data: bytes | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
    ) -> Ran:
        result = self._do(self._machine(name).exec, *argv, input=data, env=env, user=user, cwd=cwd)
        return Ran(result.code, result.stdout_bytes, result.stderr_bytes)

    def list(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = msgspec.to_builtins(self._insula.list())
        return found

    def show(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = msgspec.to_builtins(self._machine(name).show())
        return shown

    def put(self, name: str, sources: Sequence[Path], destination: str) -> None:
        self._do(self._machine(name).put, list(sources), destination)

    def get(self, name: str, sources: Sequence[str], destination: Path) -> None:
        self._do(self._machine(name).get, list(sources), destination)

    def logs(self, name: str) -> bytes:
        logs: bytes = self._machine(name).logs()
        return logs

    def events(self, name: str) -> Sequence[dict[str, Any]]:
        return self._machine(name).events()

    def _snapshot(self, name: str, snapshot: str) -> insula.Snapshot:
        return insula.Snapshot(self._machine(name), snapshot)

    def snapshot(self, name: str, snapshot: str = "", description: str = "") -> str:
        return str(self._do(self._machine(name).snapshot, snapshot, description=description).name)

    def snapshots(self, name: str) -> Sequence[dict[str, Any]]:
        return [msgspec.to_builtins(snapshot.status) for snapshot in self._machine(name).snapshots()]

    def restore(self, name: str, snapshot: str, *, keep: bool = True) -> None:
        self._do(self._snapshot(name, snapshot).restore, keep=keep)

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        self._do(self._snapshot(name, snapshot).delete)

    def fork(self, name: str, snapshot: str = "", *, count: int = 1, pattern: str) -> Sequence[str]:
        source = self._snapshot(name, snapshot) if snapshot else self._machine(name)
        return [machine.name for machine in self._do(source.fork, count, name=pattern)]

    def clone(self, name: str, new_name: str, *, full: bool = False) -> None:
        self._do(self._machine(name).clone, new_name, full=full)


def cli_command(*words: str) -> list[str]:
    """The command line that runs this checkout's `insula`."""
    return [sys.executable, "-m", "insula", *words]


def cli_environment(home: Path) -> dict[str, str]:
    source = Path(insula.__file__).parents[1]
    return {**os.environ, "INSULA_HOME": str(home), "PYTHONPATH": str(source)}


def run_cli(home: Path, *words: str, data: bytes | None = None, timeout: float = 300.0) -> subprocess.CompletedProcess[bytes]:
    """Run `insula WORDS` to its end."""
    return subprocess.run(
        cli_command(*words),
        env=cli_environment(home),
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


class _Child(subprocess.Popen[bytes]):
    """Killed when a test fails around it: leaving would wait for its end without end."""

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, trace)


def popen_cli(home: Path, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start `insula WORDS`, its output on a pipe."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return _Child(cli_command(*words), env=cli_environment(home), stdout=subprocess.PIPE, **options)


class CliDoor:
    """Through the command line, with --json."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def _call(self, *words: str) -> bytes:
        done = run_cli(self.home, *words)
        if done.returncode != 0:
            raise _refusal(done)
        return done.stdout

    def run(self, image: str, name: str, **shape: Any) -> None:
        self._call("run", "--json", "--detach", "--name", name, *_shape(shape), image)

    def create(self, image: str, name: str, **shape: Any) -> None:
        self._call("create", "--json", "--name", name, *_shape(shape), image)

    def verb(self, verb: str, name: str, *, force: bool = False) -> None:
        self._call(verb, "--json", *(["--force"] if force else []), name)

    def rename(self, name: str, new_name: str) -> None:
        self._call("rename", "--json", name, new_name)

    def exec(
        self,
        name: str,
        *argv: str,
        data: bytes | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
    ) -> Ran:
        words = ["exec", "--json", *(["-i"] if data is not None else [])]
        words += [word for key, value in (env or {}).items() for word in ("-e", f"{key}={value}")]
        words += (["-u", user] if user else []) + (["-w", cwd] if cwd else [])
        done = run_cli(self.home, *words, name, "--", *argv, data=data)
        if done.returncode in (125, 126, 127) and done.stderr.startswith(b'{"code"'):
            raise _refusal(done)
        return Ran(done.returncode, done.stdout, done.stderr)

    def list(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._call("list", "--json"))
        return found

    def show(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self._call("show", "--json", name))[0]
        return shown

    def put(self, name: str, sources: Sequence[Path], destination: str) -> None:
        self._call("copy", "--json", *map(str, sources), f"{name}:{destination}")

    def get(self, name: str, sources: Sequence[str], destination: Path) -> None:
        self._call("copy", "--json", *(f"{name}:{source}" for source in sources), str(destination))

    def logs(self, name: str) -> bytes:
        return self._call("logs", name)

    def events(self, name: str) -> Sequence[dict[str, Any]]:
        return [json.loads(line) for line in self._call("events", name).splitlines()]

    def snapshot(self, name: str, snapshot: str = "", description: str = "") -> str:
        whole = f"{name}@{snapshot}" if snapshot else name
        return str(json.loads(self._call("snapshot", "create", "--json", "--description", description, whole))["name"])

    def snapshots(self, name: str) -> Sequence[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._call("snapshot", "list", "--json", name))
        return found

    def restore(self, name: str, snapshot: str, *, keep: bool = True) -> None:
        self._call("snapshot", "restore", "--json", *([] if keep else ["--discard"]), f"{name}@{snapshot}")

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        self._call("snapshot", "delete", "--json", f"{name}@{snapshot}")

    def fork(self, name: str, snapshot: str = "", *, count: int = 1, pattern: str) -> Sequence[str]:
        whole = f"{name}@{snapshot}" if snapshot else name
        made = json.loads(self._call("fork", "--json", "-n", str(count), "--name", pattern, whole))
        return [str(machine["name"]) for machine in made]

    def clone(self, name: str, new_name: str, *, full: bool = False) -> None:
        self._call("clone", "--json", *(["--full"] if full else []), name, new_name)


def _shape(shape: Mapping[str, Any]) -> list[str]:
    return [word for key, value in shape.items() for word in (f"--{key}", str(value))]


def _refusal(done: subprocess.CompletedProcess[bytes]) -> Refused:
    lines = [line for line in done.stderr.splitlines() if line.startswith(b'{"code"')]
    assert lines, f"no JSON error on standard error, but: {done.stderr.decode(errors='replace')}"
    error = json.loads(lines[-1])
    return Refused(error["code"], error["message"], error["hint"], done.returncode)


@contextlib.contextmanager
def cli_at(home: Path, step: bytes, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command line that has come to ``step``; killed on the way out."""
    with popen_cli(home, *words, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if step in line:
                break
        else:
            raise AssertionError(f"it never came to {step!r}")
        try:
            yield child
        finally:
            child.kill()
