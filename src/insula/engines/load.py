"""Chooses an engine by name."""

from __future__ import annotations

from insula.engines.base import Engine
from insula.errors import UsageError
from insula.store.names import Home


def load_engine(name: str, home: Home) -> Engine:
    """The engine called ``name``. Raises UsageError (``unknown_engine``), or RuntimeError for the fake outside tests."""
    if name == "qemu":
        from insula.engines.qemu.engine import QemuEngine

        return QemuEngine(home)
    if name == "fake":
        from insula.engines.fake.engine import FakeEngine

        return FakeEngine(home)
    raise UsageError(f"there is no engine named '{name}'", code="unknown_engine", hint="engines: qemu")
