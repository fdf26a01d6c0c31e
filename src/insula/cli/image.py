"""The commands of the noun *image*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from insula.cli.common import dry_run_option, json_option, make_spec, perform, perform_each, quiet_option, shape_options
from insula.cli.group import Noun
from insula.cli.render import age, print_json, print_pairs, print_table
from insula.cli.values import later
from insula.errors import InsulaError, NotFound, UsageError
from insula.model.requests import (
    BuildImage,
    DeleteImage,
    DeleteWarmStates,
    ListImages,
    ListWarmStates,
    PruneImages,
    ShowImage,
    WarmImage,
)
from insula.model.units import format_size


@click.group(cls=Noun, epilog="Example: insula image list")
def image() -> None:
    """Build, list, delete and prune images, and keep them warm."""


@image.command(
    short_help="Build an image from a recipe.", epilog="Examples: insula image build debian  |  insula image build ./web.toml"
)
@click.option("--refresh", is_flag=True, help="Build anew from the archive even when the image is there.")
@quiet_option
@json_option
@click.argument("recipe", shell_complete=later("recipes"))
def build(recipe: str, refresh: bool, quiet: bool, as_json: bool) -> None:
    """Build an image from RECIPE: the name of one that comes with Insula, or a TOML file."""
    if "/" in recipe or recipe.endswith(".toml"):
        request = BuildImage(recipe=recipe, text=_read_recipe(Path(recipe)), refresh=refresh)
    else:
        request = BuildImage(recipe=recipe, refresh=refresh)
    built = perform(request, quiet or as_json)
    if as_json:
        print_json(built)
    else:
        click.echo(f"{built.name} {built.digest[:12]}")


def _read_recipe(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"there is no recipe {path}", code="recipe_not_found", hint="to see built-in ones: insula image list"
        ) from None
    except UnicodeDecodeError as cause:
        raise UsageError(f"{path} is no recipe: it is not text", code="bad_recipe", hint="a recipe is a TOML file") from cause
    except OSError as cause:
        raise UsageError(f"{path} cannot be read as a recipe: {cause.strerror}", code="bad_recipe") from cause


@image.command("list", short_help="List images, and recipes that are not built yet.", epilog="Example: insula image list --json")
@json_option
def list_(as_json: bool) -> None:
    """List images, and the recipes that come with Insula and are not built yet."""
    images = perform(ListImages())
    if as_json:
        print_json(images)
        return
    print_table(
        ("NAME", "DIGEST", "ARCH", "SIZE", "AGE"),
        (
            (
                ",".join(entry.names) or "-",
                entry.digest[:12] or "not built",
                entry.arch,
                format_size(entry.size) if entry.digest else "-",
                age(entry.created) if entry.digest else "-",
            )
            for entry in images
        ),
    )


@image.command(epilog="Example: insula image show debian")
@json_option
@click.argument("name", shell_complete=later("images"))
def show(name: str, as_json: bool) -> None:
    """Show all that is known of an image."""
    shown = perform(ShowImage(image=name))
    if as_json:
        print_json(shown)
        return
    print_pairs(
        [
            ("names", ", ".join(shown.names)),
            ("digest", shown.digest),
            ("architecture", shown.arch),
            ("boot", shown.boot),
            ("suite", shown.suite),
            ("kernel", shown.kernel),
            ("size", format_size(shown.size)),
            ("disk", format_size(shown.disk)),
            ("built", f"{age(shown.created)} ago" if shown.created else ""),
            ("packages", str(len(shown.packages)) if shown.packages else ""),
            ("folder", shown.folder),
        ]
    )


@image.command(short_help="Delete images.", epilog="Example: insula image delete debian:12")
@dry_run_option
@quiet_option
@json_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=later("images"))
def delete(names: tuple[str, ...], dry_run: bool, quiet: bool, as_json: bool) -> int:
    """Delete images. Machines made from them keep what they need."""
    done = "would be deleted" if dry_run else "deleted"
    return perform_each(names, lambda name: DeleteImage(image=name, dry_run=dry_run), as_json, quiet, done)


@image.command(
    short_help="Delete images that nobody uses.", epilog="Examples: insula image prune --dry-run  |  insula image prune --all"
)
@click.option("-a", "--all", "named", is_flag=True, help="Also images with a name, when no machine was made from them.")
@dry_run_option
@quiet_option
@json_option
def prune(named: bool, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Delete the images that no machine uses and that have no name any more, because a later build took it."""
    pruned = perform(PruneImages(named=named, dry_run=dry_run), quiet or as_json)
    if as_json:
        print_json(pruned)
    elif not quiet:
        for entry in pruned.images:
            click.echo(f"{entry.name} {'would be deleted' if dry_run else 'deleted'} ({format_size(entry.size)})")
        click.echo(f"{'would free' if dry_run else 'freed'} {format_size(pruned.freed)}")


@image.group(cls=Noun, epilog="Example: insula image warm list")
def warm() -> None:
    """States of images just after boot, which `run` goes on from instead of booting."""


@warm.command("list", epilog="Example: insula image warm list")
@json_option
def warm_list(as_json: bool) -> None:
    """List the states that are kept. One that says why in NOTE is not used any more."""
    states = perform(ListWarmStates())
    if as_json:
        print_json(states)
        return
    print_table(
        ("IMAGE", "DIGEST", "CPUS", "MEMORY", "DISK", "SIZE", "AGE", "NOTE"),
        (
            (
                state.image or "-",
                state.digest[:12] or "-",
                str(state.cpus or "-"),
                format_size(state.memory) if state.memory else "-",
                format_size(state.disk) if state.disk else "-",
                format_size(state.size),
                age(state.created) if state.created else "-",
                state.stale or "",
            )
            for state in states
        ),
    )


@warm.command(
    "make",
    short_help="Keep an image's state just after boot.",
    epilog="Examples: insula image warm make debian  |  insula image warm make --cpus 2 --memory 2G debian",
)
@shape_options
@click.option("--refresh", is_flag=True, help="Boot anew even when there is a state.")
@quiet_option
@json_option
@click.argument("image", shell_complete=later("images"))
def warm_make(image: str, refresh: bool, quiet: bool, as_json: bool, **shape: Any) -> None:
    """Boot IMAGE once and keep its state, ahead of the first `run` of a machine of that shape."""
    state = perform(WarmImage(image=image, spec=make_spec(shape), refresh=refresh), quiet or as_json)
    if as_json:
        print_json(state)
    elif not quiet:
        click.echo(f"{state.image} is warm ({format_size(state.size)})")


@warm.command("delete", epilog="Examples: insula image warm delete debian  |  insula image warm delete")
@quiet_option
@json_option
@click.argument("images", nargs=-1, metavar="[IMAGE...]", shell_complete=later("images"))
def warm_delete(images: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Delete the states of images, or all. Machines that went on from them keep what they need."""
    from insula.cli.main import report

    deleted, status = [], 0
    for name in dict.fromkeys(images) or ("",):
        try:
            deleted += perform(DeleteWarmStates(image=name))
        except InsulaError as error:
            status = max(status, report(error.code, error.message, error.hint, as_json, error.exit_code, cause=error))
    if as_json:
        print_json(deleted)
    elif not quiet:
        for state in deleted:
            click.echo(f"the warm state of {state.image or state.key} deleted ({format_size(state.size)})")
    return status
