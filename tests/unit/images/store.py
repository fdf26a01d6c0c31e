"""Images made by hand, for tests of what is done with finished ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from insula.images.catalogue import Names, images_lock, read_names, write_names
from insula.images.recipe import load_recipe
from insula.images.record import VERSION, Image, ImageRecord, read_image
from insula.model.identity import new_identity
from insula.model.spec import MachineSpec
from insula.store import names
from insula.store.machines import RECORD_VERSION, Boot, ImageUse, MachineRecord, write_machine
from insula.store.names import Home
from insula.store.records import write_record
from insula.store.snapshots import SNAPSHOT_VERSION, SnapshotRecord
from insula.store.sums import sum_file
from insula.store.warm import warm_snapshot


def put_image(home: Home, word: str, *, called: tuple[str, ...] = ()) -> Image:
    """An image whose files hold ``word``, under the names ``called``."""
    home.prepare()
    digest = hashlib.sha256(word.encode()).hexdigest()
    folder = home.image(digest)
    folder.mkdir()
    for name in (names.ROOT_LAYER, names.KERNEL):
        write(folder / name, f"{name} {word}".encode())
    files = {name: sum_file(folder / name) for name in (names.ROOT_LAYER, names.KERNEL)}
    recipe = load_recipe("tiny")
    record = ImageRecord(VERSION, digest, f"key {word}", "amd64", "2025-01-01T00:00:00+00:00", "6.12", 1 << 30, recipe, files)
    write_record(folder / names.IMAGE_RECORD, record, 0o444)
    with images_lock(home):
        table = read_names(home)
        write_names(home, Names(names=table.names | dict.fromkeys(called, digest), keys=table.keys | {f"key {word}": digest}))
    return read_image(folder)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o444)


def put_machine(home: Home, name: str, image: Image) -> Path:
    """A machine whose record says that it was made from ``image``, and that holds no link to it."""
    folder = home.machine(name)
    folder.mkdir()
    identity = new_identity()
    record = MachineRecord(
        version=RECORD_VERSION,
        id=identity.uuid,
        kind="vm",
        created=1.5,
        image=ImageUse(name="web", digest=image.digest),
        spec=MachineSpec(),
        identity=identity,
        boot=Boot(kind="disk"),
        disks=[],
        arch="amd64",
    )
    write_machine(folder, record)
    return folder


def put_warm(home: Home, key: str, image: Image, content: bytes) -> None:
    """A warm state of ``image``: a link to its root layer, and ``content`` for memory."""
    folder = home.warm / key
    snapshot = warm_snapshot(folder)
    snapshot.mkdir(parents=True)
    (folder / names.LAYERS).mkdir()
    os.link(image.root_layer, folder / names.LAYERS / "root")
    (snapshot / names.MEMORY).write_bytes(content)
    identity = new_identity()
    record = SnapshotRecord(
        version=SNAPSHOT_VERSION,
        id=identity.uuid,
        created=1.5,
        description="",
        state="running",
        parent=None,
        image=ImageUse(name="web", digest=image.digest),
        spec=MachineSpec(),
        identity=identity,
        boot=Boot(kind="disk"),
        arch="amd64",
        board=None,
        disks=[],
        memory=None,
        sums={},
    )
    write_record(snapshot / names.SNAPSHOT_RECORD, record)
