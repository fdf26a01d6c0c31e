"""Recipes: small TOML files that say what is in an image. ``docs/images.md`` describes every key.

A broken recipe is refused with the line and the key at fault.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from insula.errors import NotFound, UsageError
from insula.model.names import nearest
from insula.model.units import GIB, parse_size

NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}(:[a-z0-9][a-z0-9.-]{0,31})?")
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,31}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+~:-]+)?(/[a-z0-9-]+)?")
_OWNER = re.compile(r"(0|[1-9]\d{0,4}):(0|[1-9]\d{0,4})")
_OFFERED = 8  # names told to whoever asked for one that is like none
_MODE = re.compile(r"0?[0-7]{3,4}")

BUSYBOX: Final = "busybox-static"  # what the root of a direct-boot image is made of; the other one needs libraries
LEAST_ROOT: Final = 64 * 1024 * 1024


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which kernel package, and from which suite when not from the recipe's own. ``modules``: for direct boot only."""

    package: str
    suite: str = ""
    modules: tuple[str, ...] = ()
    cmdline: str = ""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file put into the image before ``commands`` run."""

    path: str
    content: str
    mode: str = "0644"
    owner: str = "0:0"


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for. ``boot``: ``disk`` (a machine that boots itself) or ``direct`` (we hand the kernel to QEMU). ``warm``:
    whether `run` may fork a state the image has just after boot, so that machines share what is where in memory."""

    name: str
    suite: str
    kernel: Kernel
    aliases: tuple[str, ...] = ()
    boot: Literal["disk", "direct"] = "disk"
    architectures: tuple[str, ...] = ("amd64",)
    packages: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    commands: tuple[str, ...] = ()
    disk: str = "10G"
    warm: bool = True
    date: datetime.date = datetime.date(2025, 1, 1)

    @property
    def epoch(self) -> int:
        """No file of the image is younger than this (seconds since 1970), so the hour of the build leaves no trace."""
        return int(datetime.datetime(self.date.year, self.date.month, self.date.day, tzinfo=datetime.UTC).timestamp())

    @property
    def disk_bytes(self) -> int:
        return parse_size(self.disk)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def canonical(self) -> bytes:
        """The same bytes for the same meaning, whatever the TOML looked like."""
        return msgspec.json.encode(self, order="sorted")


def parse_recipe(text: str, source: str = "recipe") -> Recipe:
    """The recipe in ``text``. Raises UsageError (``bad_recipe``) that names ``source``, the line and the key."""
    import tomllib

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:  # also of numbers too long, and lists too deep, for its reader
        raise _broken(source, _syntax_line(str(cause), text), "", re.sub(r" \(at .*\)$", "", str(cause))) from cause
    try:
        recipe = msgspec.convert(table, Recipe)
    except msgspec.ValidationError as cause:
        key, why = _key_of(cause)
        key = _with_index(table, key)
        raise _broken(source, _line_of(text, key), key, why) from cause
    for key, problem in _problems(recipe):
        raise _broken(source, _line_of(text, key), key, problem)
    return recipe


def _problems(recipe: Recipe) -> list[tuple[str, str]]:
    """What the types cannot say: (key, problem)."""
    found: list[tuple[str, str]] = []

    def check(key: str, value: str, pattern: re.Pattern[str]) -> None:
        if pattern.fullmatch(value) is None:
            found.append((key, f"'{value[:60]}' is not allowed here"))

    check("name", recipe.name, NAME)
    for number, alias in enumerate(recipe.aliases):
        check(f"aliases[{number}]", alias, NAME)
    check("suite", recipe.suite, _SUITE)
    check("kernel.package", recipe.kernel.package, _PACKAGE)
    if recipe.kernel.suite:
        check("kernel.suite", recipe.kernel.suite, _SUITE)
    for number, package in enumerate(recipe.packages):
        check(f"packages[{number}]", package, _PACKAGE)
    for number, file in enumerate(recipe.files):
        check(f"files[{number}].mode", file.mode, _MODE)
        check(f"files[{number}].owner", file.owner, _OWNER)
        parts = file.path.split("/")
        if not file.path.startswith("/") or "\0" in file.path or any(part in ("", ".", "..") for part in parts[1:]):
            found.append((f"files[{number}].path", "must be an absolute path without '.' and '..'"))
    if not recipe.architectures:
        found.append(("architectures", "names no architecture"))
    if recipe.boot == "direct":
        found.extend(_direct_problems(recipe))
    found.extend(_disk_problems(recipe))
    return found


def _direct_problems(recipe: Recipe) -> list[tuple[str, str]]:
    found = []
    if recipe.commands:
        found.append(("commands", "a direct-boot image has no package system in which commands could run"))
    if not any(re.split("[:=/]", package)[0] == BUSYBOX for package in recipe.packages):
        key = "packages" if recipe.packages else "boot"
        found.append((key, f"a direct-boot image is made of busybox: '{BUSYBOX}' must be among its packages"))
    return found


def _disk_problems(recipe: Recipe) -> list[tuple[str, str]]:
    try:
        size = recipe.disk_bytes
    except UsageError as cause:
        return [("disk", cause.message)]
    least = LEAST_ROOT if recipe.boot == "direct" else 2 * GIB
    if not least <= size <= 1024 * GIB or size % 4096:
        return [("disk", f"'{recipe.disk}' is too small, too large, or no multiple of 4 KiB")]
    return []


def _broken(source: str, line: int, key: str, why: str) -> UsageError:
    place = f"{source}, line {line}" if line else source
    about = f"{key}: " if key else ""
    return UsageError(f"{place}: {about}{why}", code="bad_recipe", hint="docs/images.md describes every key of a recipe")


def _syntax_line(message: str, text: str) -> int:
    match = re.search(r"at line (\d+)", message)
    return int(match[1]) if match else text.count("\n") + 1


def _key_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """The key path and the reason in msgspec's words, such as "Expected `str`, got `int` - at `$.files[0].mode`"."""
    message = str(error)
    reason, _, place = message.partition(" - at `")
    key = place.removesuffix("`").removeprefix("$").removeprefix(".")
    unknown = re.search(r"unknown field `([^`]*)`|missing required field `([^`]*)`", reason)
    if unknown:
        name = unknown[1] or unknown[2]
        # A missing key has no line of its own; what lacks it has.
        key = f"{key}.{name}".lstrip(".")
        reason = "is not a key of a recipe" if unknown[1] is not None else "is missing"
    return key, reason


def _with_index(table: dict[str, Any], key: str) -> str:
    """msgspec says ``files[...].mode``; the number of the entry that is wrong is found by trying each."""
    name, dots, rest = key.partition("[...]")
    kind: Any = File if name == "files" else str
    entries = table.get(name)
    if not dots or not isinstance(entries, list):
        return key
    for number, entry in enumerate(entries):
        try:
            msgspec.convert(entry, kind)
        except msgspec.ValidationError:
            return f"{name}[{number}]{rest}"
    return key


_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"'-]+)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([\w\"'.-]+)\s*=")


def _line_of(text: str, key: str) -> int:
    """The line on which ``key`` (``kernel.package``, ``files[1].mode``) stands, or its table, or 0 when it is nowhere.

    tomllib keeps no positions, so this reads the headers and assignments of the text again; it is only ever asked about
    texts that parsed.
    """
    wanted = key
    while wanted:
        table, counts = "", dict[str, int]()
        for number, line in enumerate(text.splitlines(), start=1):
            if header := _HEADER.match(line):
                name = header[2].replace('"', "").replace("'", "")
                if header[1] == "[[":
                    counts[name] = counts.get(name, -1) + 1
                    name = f"{name}[{counts[name]}]"
                table = f"{name}."
                if table == f"{wanted}.":
                    return number
            elif (assignment := _ASSIGNMENT.match(line)) and f"{table}{assignment[1].strip(chr(34))}" == wanted:
                return number
        shorter = re.sub(r"(\[\d+\]|\.?[^.\[\]]+)$", "", wanted)
        if shorter == wanted:
            break
        wanted = shorter
    return 0


def recipes_folder() -> Path:
    """Where the recipes that come with Insula are."""
    return Path(__file__).with_name("recipes")


def recipes() -> dict[str, Recipe]:
    """The recipes that come with Insula, by every name they have."""
    found: dict[str, Recipe] = {}
    for path in sorted(recipes_folder().glob("*.toml")):
        recipe = parse_recipe(path.read_text(), path.name)
        found |= dict.fromkeys(recipe.names, recipe)
    return found


def unknown_image(name: str, known: list[str]) -> NotFound:
    """The error for a name that is neither an image nor a recipe."""
    if near := nearest(name, known):
        hint = f"did you mean {' or '.join(near)}?"
    else:
        shown = ", ".join(known[:_OFFERED]) + (", …" if len(known) > _OFFERED else "")
        hint = (
            f"there is {shown}; all of them: insula image list" if known else "there is none yet; see: insula image build --help"
        )
    return NotFound(f"no image or recipe named '{name}'", code="image_not_found", hint=hint)


def load_recipe(name: str) -> Recipe:
    """The recipe that comes with Insula under ``name``. Raises NotFound (``image_not_found``) offering the nearest names."""
    known = recipes()
    if name not in known:
        raise unknown_image(name, sorted(known))
    return known[name]


def table_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for showing."""
    plain: dict[str, Any] = msgspec.to_builtins(recipe)
    return plain
