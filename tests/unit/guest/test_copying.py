"""Files into and out of a guest: a real agent writes and reads them here, in another folder of this computer."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from insula.errors import GuestError, HostLacks, InsulaError, NotFound, UsageError
from insula.guest import wire
from insula.guest.copying import copy_in, copy_out, guest_roots, put_entries
from insula.guest.entries import END, Entry
from insula.guest.link import Link
from insula.guest.pack import Packer
from tests.framework.peer import Peer
from tests.framework.trees import seen


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The folder that stands for the inside of the guest."""
    folder = tmp_path / "guest"
    folder.mkdir()
    return folder


def test_there_and_back_again(agent: Link, tree: Path, guest: Path, tmp_path: Path) -> None:
    assert copy_in(agent, [tree], f"{guest}/new") == []
    assert seen(guest / "new") == seen(tree)
    report = copy_out(agent, [f"{guest}/new"], tmp_path / "back")
    assert seen(tmp_path / "back") == seen(tree)
    assert (report.warnings, report.bytes) == ([], 700_001 + 7 + 10 + 4)
    assert (tmp_path / "back" / "file").stat().st_nlink == 2


def test_a_folder_that_exists_gets_sources_inside(agent: Link, tree: Path, guest: Path) -> None:
    copy_in(agent, [tree, tree / "file"], f"{guest}")
    assert sorted(os.listdir(guest)) == ["file", "x"]


def test_a_link_to_a_folder_is_a_folder(agent: Link, tree: Path, guest: Path, tmp_path: Path) -> None:
    (guest / "real").mkdir()
    (guest / "link").symlink_to("real")
    copy_in(agent, [tree / "file"], f"{guest}/link")
    assert (guest / "real" / "file").read_bytes() == b"content"


def test_a_file_gets_the_new_name_or_replaces(agent: Link, tree: Path, guest: Path) -> None:
    (guest / "old").write_bytes(b"former")
    copy_in(agent, [tree / "run"], f"{guest}/old")
    assert (guest / "old").read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE((guest / "old").stat().st_mode) == 0o755


def test_contents_of_a_folder(agent: Link, tree: Path, guest: Path, tmp_path: Path) -> None:
    guest.chmod(0o711)
    copy_in(agent, [f"{tree}/."], f"{guest}")
    assert seen(guest) == seen(tree)
    assert stat.S_IMODE(guest.stat().st_mode) == 0o711
    copy_in(agent, [f"{tree}/."], f"{guest}/fresh")
    assert seen(guest / "fresh") == seen(tree)
    (tmp_path / "back").mkdir()
    copy_out(agent, [f"{guest}/fresh/."], tmp_path / "back")
    assert seen(tmp_path / "back") == seen(tree)


@pytest.mark.parametrize(
    ("sources", "destination", "code", "message"),
    [
        (["file"], "no/where", "no_such_folder", "no such folder in the guest: {guest}/no"),
        (["file", "run"], "new", "not_a_folder", "not a folder in the guest: {guest}/new"),
        (["file"], "new/", "no_such_folder", "no such folder in the guest: {guest}/new/"),
        (["file"], "plain/x", "no_such_folder", "no such folder in the guest: {guest}/plain"),
    ],
)
def test_destinations_in_the_guest_that_cannot_be(
    agent: Link, tree: Path, guest: Path, sources: list[str], destination: str, code: str, message: str
) -> None:  # fmt: skip
    (guest / "plain").touch()
    with pytest.raises(GuestError) as caught:
        copy_in(agent, [tree / source for source in sources], f"{guest}/{destination}")
    assert (caught.value.code, str(caught.value)) == (code, message.format(guest=guest))
    assert os.listdir(guest) == ["plain"]


def test_a_folder_over_a_file_is_refused(agent: Link, tree: Path, guest: Path) -> None:
    (guest / "plain").write_bytes(b"keep")
    with pytest.raises(GuestError, match=f"in the guest: {guest}/plain"):
        copy_in(agent, [tree], f"{guest}/plain")
    assert (guest / "plain").read_bytes() == b"keep"


def test_a_folder_with_a_slash_may_be_made(agent: Link, tree: Path, guest: Path) -> None:
    copy_in(agent, [tree / "deep"], f"{guest}/made/")
    assert os.listdir(guest / "made" / "er")


def test_a_slash_asks_for_a_folder_here_too(agent: Link, tree: Path, guest: Path, tmp_path: Path) -> None:
    (guest / "file").write_bytes(b"x")
    (tmp_path / "plain").touch()
    for destination, error, code in (
        (f"{tmp_path}/q/", NotFound, "no_such_folder"),
        (f"{tmp_path}/plain/", UsageError, "not_a_folder"),
    ):
        with pytest.raises(error) as caught:
            copy_out(agent, [f"{guest}/file"], destination)
        assert (caught.value.code, destination in caught.value.message) == (code, True)
    assert not (tmp_path / "q").exists()
    copy_in(agent, [tree / "deep"], f"{guest}/deep")
    copy_out(agent, [f"{guest}/deep"], f"{tmp_path}/q/")
    assert os.listdir(tmp_path / "q" / "er")


@pytest.mark.parametrize("path", ["/proc/version", "/proc/filesystems", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_what_says_nothing_true_of_its_size_is_read_to_its_end(agent: Link, guest: Path, tmp_path: Path, path: str) -> None:
    """Both ways: of /proc and /sys it is the content that counts."""
    content = Path(path).read_bytes()
    assert content
    report = copy_out(agent, [path, "/proc/cmdline"], tmp_path)
    assert (tmp_path / Path(path).name).read_bytes() == content
    assert report.bytes == len(content) + len(Path("/proc/cmdline").read_bytes())
    assert copy_in(agent, [path], str(guest)) == []
    assert (guest / Path(path).name).read_bytes() == content


def test_what_has_no_size_and_no_end_is_refused(agent: Link, guest: Path, tmp_path: Path) -> None:
    for copy in (
        lambda: copy_out(agent, ["/proc/self/pagemap"], tmp_path),
        lambda: copy_in(agent, ["/proc/self/pagemap"], str(guest)),
    ):
        with pytest.raises(InsulaError, match="/proc/self/pagemap") as caught:
            copy()
        assert caught.value.code == "file_too_large"
    assert not (tmp_path / "pagemap").exists()
    agent.call("ping")


def test_a_hole_is_no_lie(agent: Link, guest: Path, tmp_path: Path) -> None:
    with open(guest / "hole", "wb") as hole:
        hole.truncate(50_000)
    copy_out(agent, [f"{guest}/hole"], tmp_path / "hole")
    assert (tmp_path / "hole").read_bytes() == bytes(50_000)


def test_several_trees_come_out_into_a_folder(agent: Link, guest: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (guest / name).mkdir()
        (guest / name / "in").write_text(name)
    (tmp_path / "here").mkdir()
    copy_out(agent, [f"{guest}/a", f"{guest}/b/"], tmp_path / "here")
    assert [(tmp_path / "here" / name / "in").read_text() for name in ("a", "b")] == ["a", "b"]


def test_what_is_not_in_the_guest(agent: Link, guest: Path, tmp_path: Path) -> None:
    with pytest.raises(GuestError) as caught:
        copy_out(agent, [f"{guest}/nope"], tmp_path / "here")
    assert caught.value.code == "no_such_file"
    assert str(caught.value) == f"no such file in the guest: {guest}/nope"
    assert not (tmp_path / "here").exists()
    agent.call("ping")


def test_a_local_failure_gives_the_request_up_and_keeps_the_link(agent: Link, guest: Path, tmp_path: Path) -> None:
    (guest / "big").write_bytes(bytes(2_000_000))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "big").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        copy_out(agent, [f"{guest}/big"], tmp_path / "here")
    assert os.listdir(tmp_path / "here") == ["big"]
    agent.call("ping")
    with pytest.raises(NotFound):
        copy_in(agent, [tmp_path / "nope"], f"{guest}/x")
    agent.call("ping")


def test_what_fails_while_packing_leaves_nothing_half_in_the_guest(agent: Link, guest: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(5_000_000))
    packer = Packer([source])

    def chunks() -> Iterator[bytes | memoryview]:
        yield from islice(packer, 5)
        raise HostLacks("gone", code="unreadable")

    with pytest.raises(HostLacks):
        put_entries(agent, os.fspath(guest), chunks(), packer.names)
    agent.call("ping")
    assert os.listdir(guest) == []


@pytest.mark.parametrize(
    ("path", "root"),
    [("/etc/hosts", (b"hosts", False)), ("etc/", (b"etc", False)), ("/a/.", (b"a", True)), ("/a/./", (b"a", True)),
     ("/a//", (b"a", False))],
)  # fmt: skip
def test_guest_roots(path: str, root: tuple[bytes, bool]) -> None:
    assert guest_roots([path]) == [root]


@pytest.mark.parametrize("path", ["", "/", "/.", "/a/..", ".."])
def test_paths_without_a_name_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        guest_roots([path])


def test_truncation_by_the_guest_is_told_by_its_own_error(peer: Peer, tmp_path: Path) -> None:
    peer.send(wire.DATA, 1, b"\x10\0\0\0", wire.STDOUT)
    peer.result(1, error="EIO", path=b"x/y", message="Input/output error")
    with pytest.raises(GuestError, match=r"EIO: /deep/x/y \(Input/output error\)") as caught:
        copy_out(peer.link, ["/deep/x"], tmp_path / "x")
    assert caught.value.code == "guest_eio"


def test_a_guest_that_sends_what_was_not_asked_for(peer: Peer, tmp_path: Path) -> None:
    peer.send(wire.DATA, 1, Entry(b".bashrc", "f", size=3).encode() + b"bad" + END, wire.STDOUT)
    with pytest.raises(InsulaError, match="was not asked for"):
        copy_out(peer.link, ["/x"], tmp_path)
    assert os.listdir(tmp_path) == []
    assert [peer.read().type for _ in range(3)] == [wire.OPEN, wire.CREDIT, wire.CLOSE]
