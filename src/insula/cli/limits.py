"""Limits on the command line: the flags of `run`, `create` and `limit`, the command `limit`, and the file of profiles."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from insula.cli.common import Size, json_option, perform_each, quiet_option
from insula.cli.values import later
from insula.errors import InsulaError, NotFound, UsageError
from insula.model.limits import WORDS, LimitChanges, Limits, check_limits, words_of
from insula.model.resource_requests import LimitMachine
from insula.model.text import clean

if TYPE_CHECKING:
    from pathlib import Path

F = TypeVar("F", bound=Callable[..., Any])
_HELP: Final = {
    "pin": "CPUs of this host it may run on, such as 0,2-3.",
    "isolate": "CPUs of this host that it runs on, and no other machine does.",
    "cpu_shares": "Its weight when machines want more CPU than there is (all others: 1024).",
    "cpu_limit": "CPUs of this host it may use, such as 0.5.",
    "cpu_burst": "CPUs it may use beyond that for moments, out of what it left unused.",
    "io_weight": "Its weight at this host's disks (1 to 1000, all others: 100).",
    "disk_iops": "Requests a second to each of its disks.",
    "disk_iops_burst": "Requests a second to each for --burst-time.",
    "disk_rate": "Bytes a second to and from each of its disks, such as 20M.",
    "disk_rate_burst": "Bytes a second for --burst-time.",
    "burst_time": "Seconds that bursts of its disks may last.",
    "net": "What each of its network cards may send and receive: 50mbit, or UP/DOWN.",
}


class _Limit(click.ParamType[Any]):
    """What `model.limits.WORDS` reads."""

    def __init__(self, field: str) -> None:
        self.name = field
        self._parse = WORDS[field][1]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InsulaError as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


def limit_options(command: F) -> F:
    """The options that say what a machine is held to."""
    profile = click.option("--limit-profile", default="", metavar="PROFILE", help="Limits from the file of profiles, by name.")
    command = profile(command)
    for field in reversed(list(WORDS)):
        word = WORDS[field][0]
        option = click.option(f"--{word}", f"limit_{field}", type=_Limit(field), metavar="VALUE", help=_HELP[field])
        command = option(command)
    return command


def limit_changes(options: dict[str, Any]) -> LimitChanges:
    """What `limit_options` described. Raises UsageError (``bad_profile``), NotFound (``profile_not_found``)."""
    said = {field: value for field in WORDS if (value := options[f"limit_{field}"]) is not None}
    profile = read_profile(options["limit_profile"]) if options["limit_profile"] else LimitChanges()
    return profile.beneath(LimitChanges(**said))


def limits_asked(options: dict[str, Any]) -> Limits:
    """The limits of a machine that is yet to be made."""
    return check_limits(limit_changes(options).apply(Limits()))


@click.command(epilog="Examples: insula limit --cpu-limit 0.5 --disk-rate 20M web  |  insula limit --cpus 2 --memory 1G web")
@click.option("--cpus", type=int, help="How many CPUs it has.")
@click.option("--memory", type=Size(), help="How much memory it has.")
@limit_options
@quiet_option
@json_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=later("machines"))
def limit(names: tuple[str, ...], cpus: int | None, memory: int | None, quiet: bool, as_json: bool, **options: Any) -> int:
    """Limit what machines may have of this host, at once and at every later start. 'none' takes a limit back.

    CPUs and memory are plugged in and pulled out as far as the guest goes along; the rest comes with the next start, which is
    said.
    """
    changes = limit_changes(options)
    if not changes and cpus is None and memory is None:
        raise click.UsageError("say what to limit, such as --cpu-limit 0.5")

    def make(name: str) -> LimitMachine:
        return LimitMachine(name=name, changes=changes, cpus=cpus, memory=memory)

    return perform_each(names, make, as_json, quiet, "is limited")


def profiles_path() -> Path:
    """Where the profiles are: /etc/insula/limits.toml for root, else in the user's folder of settings."""
    from pathlib import Path

    if os.geteuid() == 0:
        return Path("/etc/insula/limits.toml")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "insula" / "limits.toml"


def read_profile(name: str, path: Path | None = None) -> LimitChanges:
    """The profile called so: a table of the file, with the flags of `insula limit` for keys.

    Raises NotFound (``profile_not_found``), UsageError (``bad_profile``) naming file and line.
    """
    import tomllib

    from insula.host.files import read_plain

    path = path or profiles_path()
    try:
        text = read_plain(path)
        profiles = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:  # also of numbers too long, and lists too deep, for its reader
        raise UsageError(f"{path}: {cause}", code="bad_profile", hint="see docs/limits.md for what it may hold") from None
    except OSError as cause:
        raise NotFound(
            f"no profile can be read from {path}: {cause.strerror}", code="profile_not_found", hint="see docs/limits.md"
        ) from None
    table = profiles.get(name)
    if not isinstance(table, dict):
        there = ", ".join(sorted(key for key, value in profiles.items() if isinstance(value, dict)))
        raise NotFound(
            f"{path} has no profile '{clean(name, longest=80)}'",
            code="profile_not_found",
            hint=f"it has: {there}" if there else "it has none",
        )
    try:
        return words_of(table)
    except UsageError as cause:
        key = cause.message.partition(":")[0]
        raise UsageError(
            f"{path}, line {_line_of(text, name, key)}: {cause.message}", code="bad_profile", hint=cause.hint
        ) from None


def _line_of(text: str, table: str, key: str) -> int:
    """Where ``key`` of a table stands, else the table itself. TOML's own reader does not tell."""
    here, found = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*\"?([^\"\]]+?)\"?\s*\]", line):
            here = header[1]
            found = number if here == table else found
        elif here == table and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return number
    return found
