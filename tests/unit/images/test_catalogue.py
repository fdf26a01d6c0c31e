"""The catalogue: finding, listing, deleting and sweeping."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from insula.errors import DamagedRecord, NotFound
from insula.images.catalogue import delete, find, find_built, get, list_images, read_names, sweep
from insula.images.record import ImageRecord
from insula.store import names
from insula.store.names import Home
from insula.store.records import read_record, write_record
from tests.unit.images.store import put_image


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_found_by_name_digest_and_prefix(home: Home) -> None:
    image = put_image(home, "one", called=("web", "web:1"))
    put_image(home, "two", called=("db",))
    for name in ("web", "web:1", image.digest, image.digest[:8]):
        assert get(home, name).digest == image.digest
    for name in ("nothing", image.digest[:7], "../images", "0" * 64):
        assert find(home, name) is None


def test_an_empty_home_has_nothing(home: Home) -> None:
    assert find(home, "web") is None
    assert list_images(home) == []
    sweep(home)
    assert not home.root.exists()


def test_unknown_names_offer_the_nearest(home: Home) -> None:
    put_image(home, "one", called=("webserver",))
    with pytest.raises(NotFound) as error:
        get(home, "webserve")
    assert (error.value.code, error.value.hint) == ("image_not_found", "did you mean webserver?")
    with pytest.raises(NotFound, match="'debain'") as error:
        get(home, "debain")
    assert "debian" in (error.value.hint or "")


def test_a_built_image_is_found_by_its_question_while_it_is_there(home: Home) -> None:
    image = put_image(home, "one")
    found = find_built(home, "key one")
    assert found is not None
    assert found.digest == image.digest
    (image.folder / names.IMAGE_RECORD).unlink()
    assert find_built(home, "key one") is None
    assert find_built(home, "key two") is None


def test_a_broken_image_is_listed_with_its_reason(home: Home) -> None:
    good, bad, empty = (put_image(home, word, called=(word,)) for word in ("good", "bad", "empty"))
    (bad.folder / names.IMAGE_RECORD).unlink()
    (bad.folder / names.IMAGE_RECORD).write_text('{"version": 1')
    (empty.folder / names.IMAGE_RECORD).unlink()
    listed = {line.names[0]: line for line in list_images(home)}
    assert listed["good"].image is not None
    assert listed["good"].digest == good.digest
    assert listed["bad"].image is None
    assert "damaged" in str(listed["bad"].error)
    assert "has no record" in str(listed["empty"].error)


def test_a_record_of_another_version_or_image_is_refused(home: Home) -> None:
    image = put_image(home, "one", called=("web",))
    path = image.folder / names.IMAGE_RECORD
    record = read_record(path, ImageRecord)
    for change, code in (({"version": 99}, "record_version"), ({"digest": "0" * 64}, "image_tampered")):
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        write_record(path, ImageRecord(**(fields | change)))
        with pytest.raises(DamagedRecord) as error:
            find(home, "web")
        assert error.value.code == code


def test_delete_takes_the_names_along_and_leaves_linked_layers(home: Home, tmp_path: Path) -> None:
    image, other = put_image(home, "one", called=("web", "web:1")), put_image(home, "two", called=("db",))
    layer = tmp_path / "layer"
    os.link(image.root_layer, layer)
    assert delete(home, "web:1") == image.digest
    assert read_names(home).names == {"db": other.digest}
    assert read_names(home).keys == {"key two": other.digest}
    assert sorted(os.listdir(home.images)) == sorted([names.IMAGES_LOCK, names.IMAGE_NAMES, other.digest])
    assert layer.read_bytes() == b"root.qcow2 one"
    with pytest.raises(NotFound):
        delete(home, "web")


def test_sweep_removes_what_the_dead_left_and_nothing_else(home: Home) -> None:
    image = put_image(home, "one")
    for entry in (".building-dead", ".building-alive", ".building-bare", ".gone-x"):
        (home.images / entry).mkdir()
        (home.images / entry / "root.qcow2").write_text("x")
    for entry in (".building-dead", ".building-alive"):
        (home.images / entry / names.LOCK).touch()
    with (home.images / ".building-alive" / names.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(home)
    assert {entry for entry in os.listdir(home.images) if entry.startswith(".")} == {names.IMAGES_LOCK, ".building-alive"}
    assert find(home, image.digest) is not None
    sweep(home)
    assert not (home.images / ".building-alive").exists()
