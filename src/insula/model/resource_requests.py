"""What can be asked about a machine's share of the host: one frozen type per verb, as in requests.py."""

from __future__ import annotations

from insula.model.limits import LimitChanges
from insula.model.requests import Request


class LimitMachine(Request, frozen=True):
    """Change what the machine is held to, at once if it runs, and at every later start."""

    name: str
    changes: LimitChanges = LimitChanges()
