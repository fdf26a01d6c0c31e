"""Puts compiled native parts into the wheel, when INSULA_WHEEL_ARCHES asks for it.

``INSULA_WHEEL_ARCHES=all`` (or ``amd64,arm64``) compiles the agent and the keeper for these architectures, with zig where
no other compiler is at hand. Without it the wheel carries their sources alone, and they are compiled when first needed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("agent", "keeper", "probe")


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own configuration type is of no use here
    """Called by hatchling once for a wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return ["ziglang>=0.14"] if os.environ.get("INSULA_WHEEL_ARCHES") else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("INSULA_WHEEL_ARCHES", "")
        if version == "editable" or not wanted:
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from insula.host.native import build
        from insula.model.architectures import ARCHITECTURES

        self._built = tempfile.TemporaryDirectory(prefix="insula-wheel-")
        for arch in ARCHITECTURES if wanted == "all" else wanted.split(","):
            for part in PARTS:
                program = Path(self._built.name) / arch / f"insula-{part}"
                program.parent.mkdir(exist_ok=True)
                self.app.display_info(f"compiling the {part} for {arch}")
                build(part, arch, program)
                build_data["force_include"][str(program)] = f"insula/_native/bin/{arch}/insula-{part}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del version, build_data, artifact_path
        if built := getattr(self, "_built", None):
            built.cleanup()
