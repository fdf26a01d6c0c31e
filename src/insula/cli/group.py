"""A noun with its verbs: who mistypes one, or calls it what another tool does, is offered the right one."""

from __future__ import annotations

from typing import Final

import click

# What the same is called by the tools people come from.
_ELSEWHERE: Final = {
    "attach": "console", "branch": "fork", "build": "image build", "checkpoint": "snapshot create", "cp": "copy",
    "destroy": "delete", "duplicate": "clone", "enter": "shell", "help": "--help", "hibernate": "suspend",
    "images": "image list", "info": "show", "init": "create", "inspect": "show", "kill": "stop --force", "launch": "run",
    "ls": "list", "mv": "rename", "new": "create", "poweroff": "stop", "prune": "image prune", "ps": "list",
    "pull": "image build", "reboot": "restart", "remove": "delete", "restore": "snapshot restore", "revert": "snapshot restore",
    "rewind": "snapshot restore", "rm": "delete", "rmi": "image delete", "rollback": "snapshot restore", "save": "suspend",
    "shutdown": "stop", "snapshots": "snapshot list", "ssh": "shell", "status": "list", "unpause": "resume",
    "version": "--version",
}  # fmt: skip


class Noun(click.Group):
    """A group whose refusal of an unknown command says which one may have been meant. So do groups within it."""

    group_class = type

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = self.list_commands(ctx)
        if not name.startswith(("-", "_")) and name not in known:
            close = nearest_commands(name, known, whole=ctx.parent is None)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"No such command '{name}'.{hint}")
        return super().resolve_command(ctx, args)


def nearest_commands(name: str, known: list[str], *, whole: bool) -> list[str]:
    """What ``name`` may have been meant to be; ``whole``: among all commands, not those of one noun."""
    from insula.model.names import nearest

    other = _ELSEWHERE.get(name, "")
    other = other if whole else other.rpartition(" ")[2]
    if other and (whole or other in known):
        return [other]
    return nearest(name, known)
