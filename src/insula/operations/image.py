"""The verbs of images."""

from __future__ import annotations

import contextlib
import datetime
from typing import TYPE_CHECKING

import msgspec

from insula.errors import InsulaError, NotFound
from insula.host.files import disk_usage
from insula.images.catalogue import delete as delete_image
from insula.images.catalogue import delete_unused, find, get, is_used, list_images, read_names, sweep
from insula.model.requests import BuildImage, DeleteImage, ListImages, PruneImages, ShowImage
from insula.operations.context import Context
from insula.operations.operation import Operation

if TYPE_CHECKING:
    from insula.images.progress import Watcher
    from insula.images.recipe import Recipe
    from insula.images.record import Image


class ImageStatus(msgspec.Struct, frozen=True):
    """An image, or a recipe that is not built yet (its digest is empty). Sizes in bytes, ``created`` in Unix seconds."""

    names: list[str]
    digest: str
    arch: str
    boot: str
    suite: str
    kernel: str
    size: int
    disk: int
    created: float
    packages: list[str]
    folder: str
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.names[0] if self.names else self.digest[:12]


class PrunedImages(msgspec.Struct, frozen=True):
    """What a prune deleted, and the bytes of disk that freed (``size`` of each)."""

    images: list[ImageStatus]
    freed: int


def find_or_build(context: Context, name: str, operation: Operation) -> Image:
    """The image called ``name``, verified; one whose recipe comes with Insula is built when it is missing.

    Raises NotFound with the nearest names, DamagedRecord (``image_tampered``), and what a build raises.
    """
    from insula.images.recipe import recipes
    from insula.images.verify import ensure_verified

    sweep(context.home)
    image = find(context.home, name)
    if image is None:
        recipe = recipes().get(name)
        if recipe is None:
            return get(context.home, name)  # explains what there is instead
        image = _build(context, recipe, operation, refresh=False)
    ensure_verified(context.home, image)
    return image


def build(context: Context, request: BuildImage, operation: Operation) -> ImageStatus:
    """Build an image; the one built before when nothing changed, unless ``refresh``."""
    from insula.images.recipe import load_recipe, parse_recipe

    operation.target = request.recipe
    recipe = parse_recipe(request.text, request.recipe or "recipe") if request.text is not None else load_recipe(request.recipe)
    image = _build(context, recipe, operation, refresh=request.refresh)
    return _status(image, list(recipe.names))


def _build(context: Context, recipe: Recipe, operation: Operation, *, refresh: bool) -> Image:
    from insula.images.build import build as build_image

    return build_image(recipe, context.home, _watcher(operation), refresh=refresh)


def _watcher(operation: Operation) -> Watcher:
    from insula.images.progress import Progress, Watcher

    def report(progress: Progress) -> None:
        operation.tell(f"{progress.step}: {progress.line}" if progress.line else progress.step, progress.fraction)

    return Watcher(report, lambda: operation.cancelled)


def list_all(context: Context, request: ListImages, operation: Operation) -> list[ImageStatus]:
    """All images, then the recipes that come with Insula and are not built yet."""
    from insula.images.recipe import recipes

    del request, operation
    found = []
    for entry in list_images(context.home):
        if entry.image is not None:
            found.append(_status(entry.image, list(entry.names)))
        else:
            found.append(_empty(list(entry.names), entry.digest, problem=str(entry.error)))
    known = {name for status in found for name in status.names}
    unbuilt = {recipe.name: recipe for name, recipe in recipes().items() if name not in known}
    return found + [_unbuilt(recipe) for recipe in unbuilt.values()]


def show(context: Context, request: ShowImage, operation: Operation) -> ImageStatus:
    """One image. Raises NotFound."""
    from insula.images.recipe import recipes

    del operation
    image = find(context.home, request.image)
    if image is None and request.image in recipes():
        return _unbuilt(recipes()[request.image])
    image = image or get(context.home, request.image)
    names = next((list(entry.names) for entry in list_images(context.home) if entry.digest == image.digest), [])
    return _status(image, names)


def delete(context: Context, request: DeleteImage, operation: Operation) -> ImageStatus:
    """Delete an image; machines made from it keep their layers. Returns what it was."""
    operation.target = request.image
    digest, status = _what_is_there(context, request.image)
    if not request.dry_run:
        sweep(context.home)
        _drop_warm(context, digest)
        delete_image(context.home, digest)
    return status


def prune(context: Context, request: PruneImages, operation: Operation) -> PrunedImages:
    """Delete images nobody uses: those without a name, which a later build of the same recipe left; ``named``: all of them.

    An image is used when a machine's record names it, or a file of it has a second link: then it would free nothing.
    """
    sweep(context.home)
    used = _used_digests(context)
    pruned = []
    for entry in list_images(context.home):
        if (entry.names and not request.named) or entry.digest in used or is_used(context.home, entry.digest):
            continue
        names = list(entry.names)
        status = _status(entry.image, names) if entry.image else _empty(names, entry.digest, problem=str(entry.error))
        size = disk_usage(context.home.image(entry.digest))
        warm = _warm_states(context, entry.digest)
        size += sum(warm.values())
        if request.dry_run or delete_unused(context.home, entry.digest, named=request.named):
            pruned.append(msgspec.structs.replace(status, size=size))
            if not request.dry_run:
                _drop_warm(context, entry.digest)
        operation.check()
    return PrunedImages(images=pruned, freed=sum(status.size for status in pruned))


def _warm_states(context: Context, digest: str) -> dict[str, int]:
    """Keys of the warm states of an image, and the bytes on disk that only each of them holds."""
    from insula.host.files import own_usage
    from insula.store.warm import warm_states

    found = (key for key, record in warm_states(context.home) if record is not None and record.image.digest == digest)
    return {key: own_usage(context.home.warm / key) for key in found}


def _drop_warm(context: Context, digest: str) -> None:
    """Delete the warm states of an image that goes: they would keep its files on disk, and nobody could use them."""
    from insula.store.warm import remove_warm

    for key in _warm_states(context, digest):
        remove_warm(context.home, key)


def _used_digests(context: Context) -> set[str]:
    """Digests of the images that records of machines name; a record that cannot be read still holds links to its image."""
    from insula.store.machines import machine_names, read_machine

    used = set()
    for name in machine_names(context.home):
        with contextlib.suppress(InsulaError, OSError):
            used.add(read_machine(context.home.machine(name)).image.digest)
    return used


def _what_is_there(context: Context, name: str) -> tuple[str, ImageStatus]:
    """Digest and status of an image by name or by the beginning of its digest, also of one whose record is damaged or missing.

    Raises NotFound.
    """
    from insula.images.recipe import recipes, unknown_image

    for entry in list_images(context.home):
        if name in entry.names or (len(name) >= 8 and entry.digest.startswith(name)):
            names = list(entry.names)
            if entry.image is None:
                return entry.digest, _empty(names, entry.digest, problem=str(entry.error))
            return entry.digest, _status(entry.image, names)
    if name in recipes():
        raise NotFound(f"the image '{name}' is not built", code="image_not_found", hint="to see what there is: insula image list")
    raise unknown_image(name, sorted(read_names(context.home).names))


def _status(image: Image, names: list[str]) -> ImageStatus:
    recipe = image.record.recipe
    return ImageStatus(
        names=names,
        digest=image.digest,
        arch=image.record.arch,
        boot=image.boot,
        suite=recipe.suite,
        kernel=image.record.kernel,
        size=image.stored_bytes,
        disk=image.disk_bytes,
        created=datetime.datetime.fromisoformat(image.record.created).timestamp(),
        packages=list(recipe.packages),
        folder=str(image.folder),
    )


def _unbuilt(recipe: Recipe) -> ImageStatus:
    made = _empty(list(recipe.names), "")
    return msgspec.structs.replace(made, arch=",".join(recipe.architectures), boot=recipe.boot, suite=recipe.suite)


def _empty(names: list[str], digest: str, problem: str | None = None) -> ImageStatus:
    return ImageStatus(
        names=names, digest=digest, arch="", boot="", suite="", kernel="", size=0, disk=0, created=0.0, packages=[], folder="",
        problem=problem,
    )  # fmt: skip
