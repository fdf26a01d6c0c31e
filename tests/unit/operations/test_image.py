"""Deleting images: those whose records cannot be read, which are to be deleted and built again, and those nobody uses."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from insula.errors import NotFound
from insula.images.catalogue import build_lock, list_images
from insula.model.requests import DeleteImage, PruneImages
from insula.operations.context import Context
from insula.operations.image import delete, prune
from insula.operations.operation import Operation, Progress
from insula.store import names
from insula.store.names import Home
from tests.unit.images.store import put_image, put_machine, put_warm


@pytest.mark.parametrize("harm", ["damaged", "missing"])
@pytest.mark.parametrize("by", ["name", "digest"])
def test_an_image_with_a_broken_record_can_be_deleted(tmp_path: Path, harm: str, by: str) -> None:
    context = Context(Home(tmp_path / "home"))
    image = put_image(context.home, "one", called=("web",))
    record = image.folder / names.IMAGE_RECORD
    record.chmod(0o600)
    record.write_text("{") if harm == "damaged" else record.unlink()
    name = "web" if by == "name" else image.digest[:12]
    planned = delete(context, DeleteImage(image=name, dry_run=True), Operation("image delete"))
    assert image.folder.exists()
    assert planned.problem
    assert delete(context, DeleteImage(image=name), Operation("image delete")).digest == image.digest
    assert not image.folder.exists()
    with pytest.raises(NotFound):
        delete(context, DeleteImage(image=name), Operation("image delete"))


def test_deleting_says_nothing_beside_its_result(tmp_path: Path) -> None:
    context = Context(Home(tmp_path / "home"))
    put_image(context.home, "one", called=("web",))
    told: list[Progress] = []
    delete(context, DeleteImage(image="web"), Operation("image delete", listener=told.append))
    assert told == []


def _prune(context: Context, **request: bool) -> dict[str, int]:
    """Names (or the beginning of the digest) of what went, with its size."""
    done = prune(context, PruneImages(**request), Operation("image prune"))
    assert done.freed == sum(image.size for image in done.images)
    return {image.name: image.size for image in done.images}


def test_pruning_takes_what_has_no_name_and_all_what_nobody_uses(tmp_path: Path) -> None:
    context = Context(Home(tmp_path / "home"))
    former = put_image(context.home, "former", called=("web",))
    latter = put_image(context.home, "latter", called=("web",))
    size = sum(entry.stat().st_blocks * 512 for entry in former.folder.iterdir())
    assert _prune(context, dry_run=True) == {former.digest[:12]: size}
    assert former.folder.exists()
    assert _prune(context) == {former.digest[:12]: size}
    assert [entry.digest for entry in list_images(context.home)] == [latter.digest]
    assert _prune(context) == {}
    assert list(_prune(context, named=True)) == ["web"]
    assert list_images(context.home) == []


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("by", ["link", "record", "build"])
def test_what_is_used_is_never_pruned(tmp_path: Path, by: str, named: bool) -> None:
    context = Context(Home(tmp_path / "home"))
    image = put_image(context.home, "one")
    descriptor = -1
    if by == "link":  # of a machine whose record is damaged
        os.link(image.root_layer, tmp_path / "layer")
    elif by == "record":  # of one that was copied, layers and all
        put_machine(context.home, "web", image)
    else:  # it was built just now and is about to get its name
        descriptor = os.open(build_lock(context.home, image.record.key), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert _prune(context, named=named) == {}
    assert image.folder.exists()
    if descriptor >= 0:
        os.close(descriptor)
        assert list(_prune(context)) == [image.digest[:12]]


def test_what_is_not_built_cannot_be_deleted_and_is_not_offered_instead(tmp_path: Path) -> None:
    context = Context(Home(tmp_path / "home"))
    for name, message, hint in (
        ("tiny", "the image 'tiny' is not built", "to see what there is: insula image list"),
        ("nothing-like", "no image or recipe named 'nothing-like'", "there is none yet; see: insula image build --help"),
    ):
        with pytest.raises(NotFound) as error:
            delete(context, DeleteImage(image=name), Operation("image delete"))
        assert (error.value.code, error.value.message, error.value.hint) == ("image_not_found", message, hint)


@pytest.mark.parametrize("way", ["prune", "delete"])
def test_warm_states_go_with_their_image_and_hold_no_image(tmp_path: Path, way: str) -> None:
    context = Context(Home(tmp_path / "home"))
    image, other = put_image(context.home, "one"), put_image(context.home, "two", called=("two",))
    put_warm(context.home, "key", image, bytes(1 << 20))
    put_warm(context.home, "other", other, b"")
    if way == "prune":
        assert _prune(context, dry_run=True)[image.digest[:12]] > 1 << 20
        assert (context.home.warm / "key").exists()
        assert _prune(context)[image.digest[:12]] > 1 << 20
    else:
        delete(context, DeleteImage(image=image.digest), Operation("image delete"))
    assert not image.folder.exists()
    assert [path.name for path in context.home.warm.iterdir()] == ["other"]


def test_a_machine_beside_a_warm_state_holds_its_image(tmp_path: Path) -> None:
    context = Context(Home(tmp_path / "home"))
    image = put_image(context.home, "one")
    put_warm(context.home, "key", image, b"x")
    os.link(image.root_layer, tmp_path / "layer")
    assert _prune(context, named=True) == {}
    assert (context.home.warm / "key").exists()
