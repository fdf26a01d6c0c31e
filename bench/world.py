"""Where measurements happen: the command as a user of this clone runs it, its images, and machines that are gone afterwards."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import insula
from bench import ROOT
from insula.engines.qemu.probe import choose, learn
from insula.errors import NotFound
from insula.images.catalogue import get
from insula.images.record import Image
from insula.store.machines import BoardRecord
from insula.store.names import Home, default_home

INSULA = str(ROOT / "insula")
_NAME = f"bench-{os.getpid()}"


class World:
    """State lies in the folder that the command uses by default, ``$INSULA_HOME``: images need not be built again."""

    def __init__(self) -> None:
        self.home: Home = default_home()
        run_quietly(INSULA, "--version")  # makes the command's environment, if it was never used
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.python = f"{(cache / 'insula' / 'environment').read_text().strip()}/bin/python"

    def image(self, name: str) -> Image:
        """An image, built now if need be."""
        insula.connect(self.home.root).build(name)
        return get(self.home, name)

    def board(self) -> BoardRecord:
        """The machine type, CPU model and accelerator that a machine made now would have."""
        return choose(learn(self.home, "amd64"), None)

    @contextlib.contextmanager
    def machine(self, image: str, *options: str) -> Iterator[str]:
        """The name of a running machine. It was booted, as those by hand are: it is no fork of a state just after boot."""
        self.image(image)
        try:
            run_quietly(INSULA, "run", "--quiet", "--cold", "--detach", "--name", _NAME, *options, image)
            yield _NAME
        finally:
            with contextlib.suppress(NotFound):
                insula.connect(self.home.root).get(_NAME).delete(force=True)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder on a disk, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="insula-bench-", dir=os.environ.get("TMPDIR") or "/var/tmp") as folder:
        yield Path(folder)


def built(name: str) -> Path:
    """``NAME.c`` of this folder as a program that runs in every guest of this computer's kind, and here; until we end."""
    folder = tempfile.mkdtemp(prefix=f"insula-bench-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / name
    compiler = "musl-gcc" if shutil.which("musl-gcc") else "cc"
    subprocess.run([compiler, "-O2", "-static", "-Wall", "-Wextra", "-o", target, ROOT / "bench" / f"{name}.c"], check=True)
    return target


def run_quietly(*words: str, **environment: str) -> None:
    """Run a program that must succeed; nobody reads what it prints."""
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ | environment)
