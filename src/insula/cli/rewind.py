"""The commands of the noun *snapshot*."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from insula.cli.common import json_option, perform, perform_each, quiet_option
from insula.cli.group import Noun
from insula.cli.render import age, print_json, print_pairs, print_table
from insula.cli.values import later
from insula.errors import UsageError
from insula.model.names import split_snapshot
from insula.model.requests import (
    CreateSnapshot,
    DeleteSnapshot,
    ExportSnapshot,
    ImportSnapshot,
    ListSnapshots,
    RestoreSnapshot,
    ShowSnapshot,
)
from insula.model.units import format_size

if TYPE_CHECKING:
    from insula.model.status import SnapshotDetails, SnapshotStatus

_SNAPSHOTS = click.argument("names", nargs=-1, required=True, metavar="NAME@SNAP...", shell_complete=later("snapshots"))


@click.group(cls=Noun, epilog="Example: insula snapshot create web@before")
def snapshot() -> None:
    """Keep a machine as it is at one instant, memory and disks, and bring it back to that."""


@snapshot.command(
    short_help="Take a snapshot of a machine.",
    epilog="Examples: insula snapshot create web  |  insula snapshot create --description 'before the upgrade' web@before",
)
@click.option("--description", default="", metavar="TEXT", help="A line about it, shown by list and show.")
@quiet_option
@json_option
@click.argument("name", metavar="NAME[@SNAP]", shell_complete=later("machines"))
def create(name: str, description: str, quiet: bool, as_json: bool) -> None:
    """Take a snapshot of a running, paused or stopped machine. A running one goes on; without @SNAP the name is chosen."""
    machine, chosen = split_snapshot(name)
    taken = perform(CreateSnapshot(name=machine, snapshot=chosen, description=description), quiet or as_json)
    if as_json:
        print_json(taken)
    else:
        click.echo(f"{taken.machine}@{taken.name}")


@snapshot.command("list", short_help="List the snapshots of machines.", epilog="Example: insula snapshot list web")
@json_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=later("machines"))
def list_(names: tuple[str, ...], as_json: bool) -> None:
    """List the snapshots of machines as a tree. `*` marks the one that the machine descends from as it is now."""
    found = [snapshot for name in dict.fromkeys(names) for snapshot in perform(ListSnapshots(name=name))]
    if as_json:
        print_json(found)
        return
    print_table(
        ("SNAPSHOT", "AGE", "SIZE", "STATE", "METHOD", "NOTE"),
        (
            (
                f"{lines}{each.machine}@{each.name}{' *' if each.current else ''}",
                age(each.created) if each.created else "-",
                format_size(each.size),
                each.state,
                each.method or "-",
                each.problem or each.description,
            )
            for lines, each in tree(found)
        ),
    )


def tree(snapshots: Sequence[SnapshotStatus]) -> Iterator[tuple[str, SnapshotStatus]]:
    """Each after its parent, before it the lines that lead to it; siblings in the order given."""
    there = {(each.machine, each.name) for each in snapshots}
    children: dict[tuple[str, str] | None, list[SnapshotStatus]] = {}
    for each in snapshots:
        parent = (each.machine, each.parent) if each.parent is not None else None
        children.setdefault(parent if parent in there else None, []).append(each)
    # A stack and not a recursion: a hundred snapshots in a row are a tree of that depth.
    waiting = [("", "", root) for root in reversed(children.get(None, []))]
    while waiting:
        before, branch, each = waiting.pop()
        yield before + branch, each
        inner = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        below = children.get((each.machine, each.name), [])
        waiting += [(inner, "└─ " if child is below[-1] else "├─ ", child) for child in reversed(below)]


@snapshot.command(epilog="Example: insula snapshot show web@before")
@json_option
@_SNAPSHOTS
def show(names: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of snapshots."""
    shown = [perform(ShowSnapshot(**_of(name))) for name in names]
    if as_json:
        print_json(shown)
        return
    for index, details in enumerate(shown):
        if index:
            click.echo()
        _print_details(details)


def _of(text: str) -> dict[str, str]:
    """The fields that name a snapshot in a request."""
    machine, name = split_snapshot(text)
    if not name:
        raise UsageError(
            f"'{text}' names a machine and no snapshot of it",
            code="bad_name",
            hint=f"write {text}@SNAPSHOT; to see them: insula snapshot list {text}",
        )
    return {"name": machine, "snapshot": name}


def _print_details(details: SnapshotDetails) -> None:
    print_pairs(
        [
            ("snapshot", f"{details.machine}@{details.name}{' (the machine descends from it)' if details.current else ''}"),
            ("description", details.description),
            ("taken", f"{age(details.created)} ago, {details.state}"),
            ("parent", f"{details.machine}@{details.parent}" if details.parent else ""),
            ("method", details.method),
            ("guest stood", f"{details.pause * 1000:.1f} ms" if details.pause else ""),
            ("shape", f"{details.cpus} CPU, {format_size(details.memory)} memory"),
            ("disks", ", ".join(f"{name} {format_size(size)}" for name, size in details.disks.items())),
            ("size", format_size(details.size)),
            ("files", ", ".join(f"{name} {format_size(size)}" for name, size in details.files.items())),
            ("board", ", ".join(part for part in (details.board, details.cpu_model, details.accelerator) if part)),
            ("qemu", details.qemu),
            ("id", details.id),
        ]
    )


@snapshot.command(
    short_help="Bring a machine back to a snapshot.",
    epilog="Examples: insula snapshot restore web@before  |  insula snapshot restore --discard web@before",
)
@click.option("--discard", is_flag=True, help="Do not keep what the machine was until now.")
@click.option("--disks", is_flag=True, help="Only its disks: the machine is off then, and boots from them.")
@quiet_option
@json_option
@click.argument("name", metavar="NAME@SNAP", shell_complete=later("snapshots"))
def restore(name: str, discard: bool, disks: bool, quiet: bool, as_json: bool) -> None:
    """Bring a machine back to a snapshot, in place. What it was until now is kept as NAME@before-restore."""
    machine = perform(RestoreSnapshot(**_of(name), keep=not discard, disks=disks), quiet or as_json)
    if as_json:
        print_json(machine)
    elif not quiet:
        click.echo(f"{machine.name} is as it was at {name}, and {machine.state}")


@snapshot.command(short_help="Delete snapshots.", epilog="Example: insula snapshot delete web@before web@snap1")
@quiet_option
@json_option
@_SNAPSHOTS
def delete(names: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Delete snapshots. Machines forked from them, and the snapshots below them, keep what they need."""
    return perform_each(names, lambda name: DeleteSnapshot(**_of(name)), as_json, quiet, "deleted")


_PASSPHRASE_FILE = click.option(
    "--passphrase-file",
    metavar="FILE",
    help="Read the passphrase from FILE (its first line); /dev/fd/N is descriptor N.",
)


@snapshot.command(
    short_help="Write a snapshot to one file, for another computer.",
    epilog="Examples: insula snapshot export web@before web.snapshot  |  insula snapshot export --encrypt web@before -",
)
@click.option("--encrypt", is_flag=True, help="Encrypt it with a passphrase, asked on the terminal without --passphrase-file.")
@_PASSPHRASE_FILE
@quiet_option
@json_option
@click.argument("name", metavar="NAME@SNAP", shell_complete=later("snapshots"))
@click.argument("file", metavar="FILE")
def export(name: str, file: str, encrypt: bool, passphrase_file: str | None, quiet: bool, as_json: bool) -> None:
    """Write a snapshot, memory included (so also keys and passwords the guest held there), to FILE (`-`: standard output)."""
    from insula.cli.packages import ensure_sealing
    from insula.cli.passphrase import new_passphrase
    from insula.client.parcels import outgoing
    from insula.model.transfer import Transfer

    passphrase = None
    if encrypt or passphrase_file is not None:
        ensure_sealing()
        passphrase = new_passphrase(passphrase_file)
    with outgoing(file) as stream:
        done = perform(ExportSnapshot(**_of(name)), quiet or as_json, Transfer(stream, passphrase))
    if as_json:
        print_json(done)
    elif not quiet and file != "-":
        click.echo(f"{name} is in {file}{', encrypted' if done.encrypted else ''}")


@snapshot.command(
    "import",
    short_help="Take in a snapshot that was exported.",
    epilog="Examples: insula snapshot import web.snapshot web  |  insula snapshot import - web@moved < web.snapshot",
)
@_PASSPHRASE_FILE
@quiet_option
@json_option
@click.argument("file", metavar="FILE")
@click.argument("name", metavar="NAME[@SNAP]", shell_complete=later("machines"))
def import_(file: str, name: str, passphrase_file: str | None, quiet: bool, as_json: bool) -> None:
    """Take in an exported snapshot from FILE (`-`: standard input) as one of machine NAME, made stopped if there is none."""
    from insula.cli.passphrase import known_passphrase
    from insula.client.parcels import incoming
    from insula.model.transfer import Transfer

    machine, chosen = split_snapshot(name)
    with incoming(file) as stream:
        transfer = Transfer(stream, known_passphrase(passphrase_file))
        taken = perform(ImportSnapshot(name=machine, snapshot=chosen), quiet or as_json, transfer)
    if as_json:
        print_json(taken)
    elif not quiet:
        click.echo(f"{taken.machine}@{taken.name}")
