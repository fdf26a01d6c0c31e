"""Trees packed here and unpacked there stay what they were; hostile streams cannot leave their folder."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import GuestError, InsulaError, NotFound, UsageError
from insula.guest.entries import END, Entry, EntryReader, batched, components, rerooted
from insula.guest.pack import Packer
from insula.guest.unpack import Copied, unpack
from tests.framework.trees import seen
from tests.unit.guest.conftest import WHEN


def unpacked(packer: Packer, destination: Path, *, archive: bool = False) -> Copied:
    return unpack(packer, destination, [(name, False) for name in packer.names], archive=archive)


def hostile(destination: Path, *entries: Entry | bytes, roots: Iterable[bytes] = (b"x",), archive: bool = False) -> Copied:
    parts = [entry if isinstance(entry, bytes) else entry.encode() for entry in entries]
    return unpack([b"".join(parts) + END], destination, [(root, False) for root in roots], archive=archive)


def test_tree_comes_through_whole(tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new"
    report = unpacked(Packer([tree]), destination)
    assert seen(destination) == seen(tree)
    assert destination.stat().st_mtime_ns == WHEN
    assert (destination / "file").stat().st_ino == (destination / "deep" / "same").stat().st_ino
    assert stat.S_ISFIFO((destination / "fifo").lstat().st_mode)
    assert (report.entries, report.warnings) == (len(seen(tree)) + 1, [])


def test_existing_folder_gets_the_tree_inside(tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "there"
    destination.mkdir()
    unpacked(Packer([tree, tree / "file"]), destination)
    assert sorted(os.listdir(destination)) == ["file", "x"]


def test_contents_go_into_the_folder_itself(tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "there"
    destination.mkdir(mode=0o700)
    unpack(rerooted(Packer([f"{tree}/."]), b"x"), destination, [(b"x", True)])
    assert sorted(os.listdir(destination)) == sorted(os.listdir(tree))
    assert stat.S_IMODE(destination.stat().st_mode) == 0o700


def test_unpacking_twice_replaces_and_leaves_no_temporary_file(tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new"
    (tree / "fifo").unlink()
    unpacked(Packer([tree]), destination)
    (tree / "file").write_bytes(b"other")
    (destination / "deep").chmod(0o755)
    destination.joinpath("empty").unlink()
    unpacked(Packer([tree]), destination / "..")  # named x there
    unpacked(Packer([tree]), tmp_path / "new2")
    assert not [name for name in seen(tmp_path) if ".insula-" in name]
    assert (tmp_path / "x" / "file").read_bytes() == b"other"


@pytest.mark.parametrize("cut", [1, 7, 4096])
def test_chunks_may_be_cut_anywhere(tree: Path, tmp_path: Path, cut: int) -> None:
    (tree / "large").write_bytes(bytes(9000))
    stream = b"".join(Packer([tree]))
    unpack([stream[at : at + cut] for at in range(0, len(stream), cut)], tmp_path / "new", [(b"x", False)])
    assert (tmp_path / "new" / "large").read_bytes() == bytes(9000)


def test_special_bits_are_dropped_unless_asked_for(tmp_path: Path) -> None:
    hostile(tmp_path, Entry(b"x", "f", mode=0o6755, size=1), b"c")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755
    hostile(tmp_path, Entry(b"x", "f", mode=0o6755, size=1, uid=os.getuid(), gid=os.getgid()), b"c", archive=True)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o6755


@pytest.mark.root
def test_archive_keeps_owners_and_plain_copy_does_not(tmp_path: Path) -> None:
    source = tmp_path / "owned"
    source.touch()
    os.chown(source, 12345, 23456)
    unpacked(Packer([source], archive=True), tmp_path / "kept", archive=True)
    unpacked(Packer([source]), tmp_path / "mine")
    assert ((tmp_path / "kept").stat().st_uid, (tmp_path / "kept").stat().st_gid) == (12345, 23456)
    assert (tmp_path / "mine").stat().st_uid == os.getuid()


@pytest.mark.parametrize(
    "path",
    [b"../x", b"x/../../y", b"/x", b"x//y", b"x/", b"", b"x/./y", b"..", b"x/..", b"z", b"x/" + b"n" * 256, b"x" + b"/d" * 300],
)
def test_paths_that_lead_astray_are_refused(tmp_path: Path, path: bytes) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    with pytest.raises(GuestError):
        hostile(inside, Entry(b"x", "d", mode=0o755), Entry(path, "f", size=1), b"!")
    assert sorted(os.listdir(tmp_path)) == ["in"]
    assert [name for name in seen(inside) if name != "x"] == []


def test_writing_through_a_link_the_guest_made_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    link = Entry(b"x", "l", target=os.fsencode(outside))
    with pytest.raises(GuestError) as caught:
        hostile(inside, link, Entry(b"x/evil", "f", size=1), b"!")
    assert caught.value.code == "unsafe_entry"
    with pytest.raises(GuestError):
        hostile(inside, link, Entry(b"x", "d", mode=0o777), Entry(b"x/evil", "f", size=1), b"!")
    assert os.listdir(outside) == []


def test_a_file_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    inside, victim = tmp_path / "in", tmp_path / "victim"
    inside.mkdir()
    victim.write_bytes(b"precious")
    (inside / "x").symlink_to(victim)
    hostile(inside, Entry(b"x", "f", mode=0o644, size=1), b"!")
    assert victim.read_bytes() == b"precious"
    assert (inside / "x").read_bytes() == b"!"
    assert not (inside / "x").is_symlink()


def test_hard_link_cannot_reach_outside_or_through_links(tmp_path: Path) -> None:
    inside, victim = tmp_path / "in", tmp_path / "victim"
    inside.mkdir()
    victim.write_bytes(b"precious")
    for target in (b"../victim", b"/etc/passwd", b"x/link/victim", b"x/link", b"x/direct"):
        top = [Entry(b"x", "d", mode=0o755), Entry(b"x/link", "l", target=os.fsencode(tmp_path))]
        with pytest.raises(InsulaError):
            hostile(inside, *top, Entry(b"x/direct", "l", target=b"../../victim"), Entry(b"x/hard", "h", target=target))
    assert victim.stat().st_nlink == 1


@pytest.mark.parametrize("kind", ["c", "b", "s", "?"])
def test_devices_and_sockets_are_left_out_and_told(tmp_path: Path, kind: str) -> None:
    report = hostile(tmp_path, Entry(b"x", "d", mode=0o755), Entry(b"x/dev", kind), archive=True)
    assert os.listdir(tmp_path / "x") == []
    assert report.warnings == ["x/dev was left out: neither a file nor a folder nor a link"]


def test_a_file_cut_short_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GuestError) as caught:
        unpack([Entry(b"x", "f", size=10).encode() + b"12345"], tmp_path, [(b"x", False)])
    assert caught.value.code == "truncated"
    assert os.listdir(tmp_path) == []


def test_impossible_sizes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="impossible size"):
        unpack([b"\xff\xff\xff\xff"], tmp_path, [(b"x", False)])


def test_escapes_in_a_hostile_name_do_not_reach_the_message(tmp_path: Path) -> None:
    with pytest.raises(GuestError) as caught:
        hostile(tmp_path, Entry(b"../\x1b[2J", "f"))
    assert "\x1b" not in str(caught.value)


def refusal(untrusted: bytes) -> str:
    """The code of the error that refused a stream, or nothing when it was taken."""
    reader = EntryReader([untrusted])
    try:
        while (entry := reader.next()) is not None:
            components(entry.path)
            assert sum(map(len, reader.data())) == entry.size
    except GuestError as error:
        return error.code
    return ""


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_garbage_entries_give_entries_or_guest_error(untrusted: bytes) -> None:
    assert refusal(untrusted) in ("", "garbled", "truncated", "unsafe_entry", "path_too_long")


def test_small_parts_travel_together_and_large_ones_as_they_are() -> None:
    large = memoryview(bytes(100_000))
    parts: list[bytes | memoryview] = [b"a", b"b", large, b"c", b"d" * 70_000, *[b"e" * 1000] * 300]
    out = list(batched(parts))
    assert b"".join(out) == b"".join(parts)
    assert out[1] is large
    assert len(out) < 10


def test_packing_tells_what_it_cannot_take(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.open(tmp_path, os.O_PATH)
        unix.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
    packer = Packer([tmp_path])
    assert b"sock" not in b"".join(packer)
    assert "was left out" in packer.warnings[0]


def test_packing_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        Packer([tmp_path / "nope"])
    assert caught.value.code == "no_such_file"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "same").touch()
    (tmp_path / "same").touch()
    with pytest.raises(UsageError, match="same name"):
        Packer([tmp_path / "same", tmp_path / "a" / "same"])


def test_a_file_that_shrinks_while_packed_keeps_the_stream_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 600_000)
    packer = Packer([path])
    chunks = iter(packer)
    parts = [next(chunks), next(chunks)]
    os.truncate(path, 300_000)
    parts += chunks
    unpack(parts, tmp_path / "copy", [(b"x", False)])
    assert (tmp_path / "copy").read_bytes() == b"a" * 300_000 + bytes(300_000)
    assert "became shorter" in packer.warnings[0]


@pytest.mark.parametrize(
    ("destination", "roots", "code"),
    [("nope/x", [(b"x", False)], "no_such_folder"), ("new", [(b"x", False), (b"y", False)], "not_a_folder"),
     (".", [(b"x", False), (b"x", False)], "same_name")],
)  # fmt: skip
def test_destinations_that_cannot_be(tmp_path: Path, destination: str, roots: list[tuple[bytes, bool]], code: str) -> None:
    with pytest.raises(InsulaError) as caught:
        unpack([END], tmp_path / destination, roots)
    assert caught.value.code == code


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    # /dev/full as a folder does not exist; a file larger than the limit of file sizes is refused by the kernel all the same.
    import resource
    import signal

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(UsageError, match="file too large"):
            hostile(tmp_path, Entry(b"x", "f", size=2000), bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []
