"""A noun with its verbs: who mistypes one, or calls it what another tool does, is offered the right one."""

from __future__ import annotations

from typing import Final

import click

# What the same is called by the tools people come from.
_ELSEWHERE: Final = {
    "attach": "console", "build": "image build", "cp": "copy", "destroy": "delete", "enter": "shell", "help": "--help",
    "images": "image list", "info": "show", "init": "create", "inspect": "show", "kill": "stop --force", "launch": "run",
    "ls": "list", "mv": "rename", "new": "create", "poweroff": "stop", "prune": "image prune", "ps": "list",
    "pull": "image build", "reboot": "restart", "remove": "delete", "rm": "delete", "rmi": "image delete",
    "shutdown": "stop", "ssh": "shell", "status": "list", "unpause": "resume", "version": "--version",
}  # fmt: skip


class Noun(click.Group):
    """A group whose refusal of an unknown command says which one may have been meant."""

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

    other = _ELSEWHERE.get(name, "").removeprefix("" if whole else "image ")
    if other and (whole or other in known):
        return [other]
    return nearest(name, known)
