"""Makes sure that a machine's layers are what it was made of, before it boots from them: the image may be long gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from insula.errors import DamagedRecord
from insula.store import names
from insula.store.sums import FileSum, Stamp, is_as_stamped, read_stamps, stamp_file, write_stamps


def ensure_layers(folder: Path, sums: Mapping[str, FileSum], image_stamps: Path) -> None:
    """Check the files of the machine in ``folder`` that ``sums`` names; instant when nothing changed since the last time.

    A layer is the same file as the image's, as a rule, and what is noted of that (``image_stamps``) is believed too; only a
    copy is hashed once. Raises DamagedRecord (``layer_tampered``, ``layer_missing``).
    """
    note = folder / names.VERIFIED_LAYERS
    stamps = read_stamps(note)
    if all(is_as_stamped(folder / path, stamps.get(path), expected) for path, expected in sums.items()):
        return
    shared = list(read_stamps(image_stamps).values())
    hint = f"put back what it was (another machine of the same image has it), or: insula delete --force {folder.name}"
    write_stamps(note, {path: _check(folder / path, expected, shared, hint) for path, expected in sums.items()})


def ensure_sums(machine: Path, snapshot: Path, sums: Mapping[str, FileSum]) -> None:
    """Check a snapshot's files and the layers it rests on, or what a suspended machine goes on from; instant when nothing changed
    since the last time.

    Raises DamagedRecord (``layer_tampered``, ``layer_missing``).
    """
    note = snapshot / names.VERIFIED_LAYERS
    stamps, paths = read_stamps(note), {path: machine / path if "/" in path else snapshot / path for path in sums}
    if all(is_as_stamped(paths[path], stamps.get(path), expected) for path, expected in sums.items()):
        return
    shared = list(read_stamps(machine / names.VERIFIED_LAYERS).values())
    hint = f"put back what it was, or: insula snapshot delete {machine.name}@{snapshot.name}"
    if snapshot.name == names.SUSPENDED:
        hint = f"put back what it was, or boot, and lose what was in memory: insula start --cold {machine.name}"
    write_stamps(note, {path: _check(paths[path], sums[path], shared, hint) for path in sums})


def _check(path: Path, expected: FileSum, shared: list[Stamp], hint: str) -> Stamp:
    for stamp in shared:
        if is_as_stamped(path, stamp, expected):
            return stamp
    try:
        found = stamp_file(path, sparse=expected.sparse)
    except OSError as cause:
        raise DamagedRecord(f"{path} cannot be read: {cause.strerror or cause}", code="layer_missing", hint=hint) from cause
    if (found.size, found.sha256) != (expected.size, expected.sha256):
        raise DamagedRecord(f"{path} is not what it was: it was changed", code="layer_tampered", hint=hint)
    return found
