"""Commands that nobody types: the keeper calls one, and verbs leave work behind to the others. They take the home, and what to do
it with."""

from __future__ import annotations

from pathlib import Path

import click


def _behind(request: str, field: str, when: str) -> click.Command:
    """The command that does one request, whose only field is named ``field``."""

    @click.command(hidden=True, help=when)
    @click.argument("home", type=click.Path(path_type=Path))
    @click.argument("value", metavar=field.upper())
    def work(home: Path, value: str) -> None:
        from insula.client.local import LocalClient
        from insula.model import requests

        LocalClient(home).do(getattr(requests, request)(**{field: value}))

    return work


ended = _behind("SettleMachine", "id", "Called by a machine's keeper when the machine has ended.")
merge = _behind("MergeLayers", "id", "Started by a verb that made a machine's chain of layers too long.")
refill = _behind("FillSpares", "origin", "Called behind a command that took a spare.")
rewarm = _behind("RefreshWarmState", "key", "Called behind a command that used a warm state which has become old.")
