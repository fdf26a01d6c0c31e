"""The SDK's door to the operations on this computer. A remote door with the same one method carries requests over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from insula.model.requests import Request
from insula.operations.context import Context
from insula.operations.dispatch import perform
from insula.operations.operation import Operation, Progress
from insula.store.names import Home


class LocalClient:
    """Does requests here. ``home`` is the state folder (default: as the command line finds it)."""

    def __init__(self, home: Path | None = None, *, context: Context | None = None) -> None:
        self.context = context or Context(Home(home) if home is not None else None)

    def do(
        self,
        request: Request,
        streams: Any = None,
        *,
        listener: Callable[[Progress], None] | None = None,
        operation: Operation | None = None,
    ) -> Any:
        """Do ``request``; ``listener`` hears of progress. Raises InsulaError."""
        return perform(self.context, request, streams, listener, operation)
