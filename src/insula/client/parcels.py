"""Files of this computer that exported snapshots are written to and read from."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from insula.errors import AlreadyExists, HostLacks, NotFound, UsageError
from insula.host.files import explain_os_error, fsync_folder
from insula.model.transfer import Transfer


def transfer(file: BinaryIO, passphrase: str | bytes | None) -> Transfer:
    if passphrase is None:
        return Transfer(file)
    known = passphrase.encode() if isinstance(passphrase, str) else passphrase
    return Transfer(file, lambda: known)


@contextlib.contextmanager
def outgoing(file: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """``file`` to write to: an open one, ``-`` for standard output, a pipe or device, or a new file, which has its name only when
    it is whole, and which nobody else may read.

    Raises AlreadyExists (``file_exists``), UsageError (``is_terminal``), HostLacks.
    """
    if not isinstance(file, str | Path):
        yield file
        return
    if os.fspath(file) == "-":
        if sys.stdout.isatty():
            raise UsageError("a snapshot is not for a terminal to show", code="is_terminal", hint="name a file, or pipe it on")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            with path.open("wb") as stream:
                yield stream
            return
        if os.path.lexists(path):
            raise AlreadyExists(f"{path} exists already", code="file_exists", hint="choose another name, or delete it first")
        with _new_file(path) as stream:
            yield stream
    except OSError as cause:
        explained = explain_os_error(cause, path.absolute())
        if explained is not cause:
            raise explained from cause
        raise HostLacks(f"{path}: {cause.strerror or cause}", code="no_access") from cause


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)  # and not a rename: what got this name meanwhile stays
        fsync_folder(path.absolute().parent)
    except FileExistsError as cause:
        raise AlreadyExists(f"{path} exists already", code="file_exists", hint="choose another name") from cause
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def incoming(file: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """``file`` to read from: an open one, ``-`` for standard input, or one by its name. Raises NotFound, HostLacks."""
    if not isinstance(file, str | Path):
        yield file
    elif os.fspath(file) == "-":
        yield sys.stdin.buffer
    else:
        try:
            stream = Path(file).open("rb")  # noqa: SIM115 - closed below; errors of the verb are not this file's
        except FileNotFoundError as cause:
            raise NotFound(f"there is no file {file}", code="file_not_found") from cause
        except OSError as cause:
            raise HostLacks(f"{file}: {cause.strerror}", code="no_access") from cause
        with stream:
            yield stream
