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
    found = {path: _check(folder, path, expected, shared) for path, expected in sums.items()}
    write_stamps(note, found)


def ensure_sums(machine: Path, snapshot: Path, sums: Mapping[str, FileSum]) -> None:
    """Check a snapshot's files and the layers it rests on; instant when nothing changed since the last time.

    Raises DamagedRecord (``layer_tampered``, ``layer_missing``).
    """
    note = snapshot / names.VERIFIED_LAYERS
    stamps, paths = read_stamps(note), {path: machine / path if "/" in path else snapshot / path for path in sums}
    if all(is_as_stamped(paths[path], stamps.get(path), expected) for path, expected in sums.items()):
        return
    shared = list(read_stamps(machine / names.VERIFIED_LAYERS).values())
    write_stamps(note, {path: _check(paths[path].parent, paths[path].name, sums[path], shared) for path in sums})


def _check(folder: Path, path: str, expected: FileSum, shared: list[Stamp]) -> Stamp:
    for stamp in shared:
        if is_as_stamped(folder / path, stamp, expected):
            return stamp
    try:
        found = stamp_file(folder / path, sparse=expected.sparse)
    except OSError as cause:
        raise _refusal(folder, path, "layer_missing", f"cannot be read: {cause.strerror or cause}") from cause
    if (found.size, found.sha256) != (expected.size, expected.sha256):
        raise _refusal(folder, path, "layer_tampered", "is not what the machine was made of: it was changed")
    return found


def _refusal(folder: Path, path: str, code: str, why: str) -> DamagedRecord:
    hint = f"put back what it was (another machine of the same image has it), or: insula delete --force {folder.name}"
    return DamagedRecord(f"{folder / path} {why}", code=code, hint=hint)
