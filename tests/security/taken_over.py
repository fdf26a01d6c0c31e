"""Start a machine whose QEMU is tests.security.evil: `python -m tests.security.taken_over HOME NAME MANNER FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from insula.client.local import LocalClient
from insula.engines.qemu import launch
from insula.host.native import native_path
from insula.isolation.jail import Jail
from insula.model.requests import StartMachine


def main() -> None:
    home, name, manner, backing = Path(sys.argv[1]), *sys.argv[2:5]

    def unjailed(_jail: Jail, command: Sequence[str]) -> list[str]:
        """It needs a Python, which no jail has; it is ours. Its keeper is process 1 all the same."""
        end = command.index("--")
        keeper = [str(native_path("insula-keeper")), *command[1 : end + 1]]
        evil = [sys.executable, "-B", "-m", "tests.security.evil", manner, backing, "--", *command[end + 2 :]]
        return ["unshare", "--pid", "--fork", *keeper, *evil]

    vars(launch)["jail_argv"] = unjailed
    LocalClient(home).do(StartMachine(name=name, timeout=0.0))


if __name__ == "__main__":
    main()
