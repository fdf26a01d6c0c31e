"""Where a passphrase comes from: the terminal, or a file. Never the command line or the environment, which others can see."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from insula.errors import NotFound, UsageError

_LONGEST = 4096


def new_passphrase(file: str | None) -> Callable[[], bytes]:
    """For something that is to be encrypted: asked twice. Raises UsageError when nobody can be asked."""
    if file is not None:
        return _read(file)
    if not _is_anybody_there():
        raise UsageError(
            "nobody is there to be asked for a passphrase",
            code="passphrase_needed",
            hint="name a file that holds it: --passphrase-file",
        )
    return lambda: _checked(click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True).encode())


def known_passphrase(file: str | None) -> Callable[[], bytes] | None:
    """For something that is perhaps encrypted: asked if it is."""
    if file is not None:
        return _read(file)
    if not _is_anybody_there():
        return None
    return lambda: _checked(click.prompt("Passphrase", hide_input=True, err=True).encode())


def _is_anybody_there() -> bool:
    """click reads a hidden answer from the terminal itself, also when standard input is the snapshot."""
    if not sys.stderr.isatty():
        return False
    try:
        with open("/dev/tty", "rb"):
            return True
    except OSError:
        return False


def _read(file: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with Path(file).open("rb") as stream:
                return _checked(stream.readline(_LONGEST + 2).rstrip(b"\r\n"))
        except OSError as cause:
            raise NotFound(f"the passphrase cannot be read from {file}: {cause.strerror}", code="file_not_found") from cause

    return read


def _checked(passphrase: bytes) -> bytes:
    if not 0 < len(passphrase) <= _LONGEST:
        raise UsageError(f"a passphrase has 1 to {_LONGEST} bytes", code="bad_passphrase")
    return passphrase
