"""The handles a verb uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from insula.store.names import Home, default_home

if TYPE_CHECKING:
    from insula.engines.base import Engine

COLD: Final = "INSULA_COLD"


class Context:
    """Where the state is and which engine runs machines; the engine is loaded when a verb first needs it.

    ``cold``: `run` boots machines instead of forking a warm state, whatever the request says (``$INSULA_COLD``).
    """

    def __init__(self, home: Home | None = None, engine: Engine | None = None) -> None:
        self.home = home or default_home()
        self.cold = bool(os.environ.get(COLD))
        self._engine = engine

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            from insula.engines.load import load_engine

            self._engine = load_engine("qemu", self.home)
        return self._engine
