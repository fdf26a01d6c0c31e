"""The digest of a tree: blind to how the tree was made, sensitive to everything it is."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.images.tree import TAR_OF_TREE, Tree, read_tree

EPOCH = 1_700_000_000


def make(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"content of {name}")
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("a")
    os.link(folder / "a", folder / "sub" / "twin")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return folder


def look(folder: Path, keep: tuple[str, ...] = ()) -> Tree:
    archive = subprocess.run([*TAR_OF_TREE, f"--directory={folder}", "."], check=True, capture_output=True).stdout
    return read_tree(io.BytesIO(archive), keep)


def test_order_of_creation_and_place_do_not_matter(tmp_path: Path) -> None:
    first = make(tmp_path / "x", ["a", "b", "c"])
    second = make(tmp_path / "elsewhere", ["c", "b", "a"])
    assert look(first).digest() == look(second).digest()


def replace(path: Path, make_anew: Callable[[Path], object]) -> None:
    path.unlink()
    make_anew(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda tree: (tree / "b").write_text("CONTENT of b"),
    "mode": lambda tree: (tree / "b").chmod(0o600),
    "time": lambda tree: os.utime(tree / "b", (EPOCH, EPOCH + 1)),
    "name": lambda tree: (tree / "b").rename(tree / "B"),
    "more": lambda tree: (tree / "sub" / "more").touch(),
    "less": lambda tree: (tree / "b").unlink(),
    "kind": lambda tree: replace(tree / "link", lambda path: path.write_text("a")),
    "target": lambda tree: replace(tree / "link", lambda path: path.symlink_to("b")),
    "twin": lambda tree: replace(tree / "sub" / "twin", lambda path: path.write_text("content of a")),
    "attribute": lambda tree: os.setxattr(tree / "b", "user.note", b"\xff\x00"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_shows(tmp_path: Path, change: str) -> None:
    tree = make(tmp_path / "x", ["a", "b"])
    before = look(tree).digest()
    CHANGES[change](tree)
    if change != "time":
        for path in [*tree.rglob("*"), tree]:
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    assert look(tree).digest() != before


def test_files_asked_for_are_kept(tmp_path: Path) -> None:
    seen = look(make(tmp_path / "x", ["a", "b", "bb"]), keep=("b",))
    assert seen.contents == {"b": b"content of b", "bb": b"content of bb"}
    assert seen.bytes == len("content of a") + len("content of b") + len("content of bb")


def test_an_archive_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", ["a"])
    (folder / "large").write_bytes(bytes(100_000))
    archive = subprocess.run([*TAR_OF_TREE, f"--directory={folder}", "large"], check=True, capture_output=True).stdout
    with pytest.raises((tarfile.TarError, EOFError)):
        read_tree(io.BytesIO(archive[:50_000]))
