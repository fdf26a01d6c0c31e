"""Archives: what is written can be read by others, and is the same each time."""

from __future__ import annotations

import io
import stat
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from insula.images.archives import Entry, character_device, folder, link, regular, with_parents, write_cpio, write_tar


def read_cpio(archive: bytes) -> list[tuple[str, int, int, bytes]]:
    """A reader of its own, written from the kernel's description: (name, mode, links, content)."""
    found: list[tuple[str, int, int, bytes]] = []
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        mode, links, size, name_size = fields[1], fields[4], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        content_at = (at + 110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert not archive[content_at:].strip(b"\0")
            return found
        found.append((name[:-1].decode(), mode, links, archive[content_at : content_at + size]))
        at = (content_at + size + 3) // 4 * 4


@given(st.lists(st.tuples(st.text("abcdefgh/", min_size=1, max_size=9), st.binary(max_size=40)), max_size=8))
def test_cpio_round_trip(files: list[tuple[str, bytes]]) -> None:
    archive = write_cpio([regular(name, content) for name, content in files])
    assert [(name, content) for name, _, _, content in read_cpio(archive)] == files
    assert len(archive) % 512 == 0


def test_cpio_of_every_kind() -> None:
    archive = write_cpio(
        [folder("dev"), character_device("dev/console", 5, 1), link("init", "/bin/sh"), regular("x", b"1", 0o755)]
    )
    assert read_cpio(archive) == [
        ("dev", stat.S_IFDIR | 0o755, 2, b""),
        ("dev/console", stat.S_IFCHR | 0o600, 1, b""),
        ("init", stat.S_IFLNK | 0o777, 1, b"/bin/sh"),
        ("x", stat.S_IFREG | 0o755, 1, b"1"),
    ]
    assert b"0000000500000001" in archive  # the console's numbers


def test_parents_come_first_and_once() -> None:
    entries = with_parents(
        [regular("a/b/c", b""), folder("a", 0o700), regular("a/b/d", b""), folder("t", 0o1777), regular("t/x", b"")]
    )
    assert [entry.path for entry in entries] == ["a", "a/b", "a/b/c", "a/b/d", "t", "t/x"]


def test_tar_keeps_owner_mode_and_time() -> None:
    entry = Entry("etc/secret", stat.S_IFREG | 0o4600, b"x", uid=7, gid=70000)
    with tarfile.open(fileobj=io.BytesIO(write_tar([folder("etc"), entry, link("l", "etc")], 1234))) as archive:
        secret, pointer = archive.getmember("etc/secret"), archive.getmember("l")
    assert (secret.mode, secret.uid, secret.gid, secret.mtime, secret.size) == (0o4600, 7, 70000, 1234, 1)
    assert (pointer.issym(), pointer.linkname) == (True, "etc")
