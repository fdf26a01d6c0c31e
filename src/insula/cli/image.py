"""The commands of the noun *image*."""

from __future__ import annotations

from pathlib import Path

import click

from insula.cli.common import dry_run_option, json_option, perform, perform_each, quiet_option
from insula.cli.group import Noun
from insula.cli.render import age, print_json, print_pairs, print_table
from insula.cli.values import later
from insula.errors import NotFound, UsageError
from insula.model.requests import BuildImage, DeleteImage, ListImages, PruneImages, ShowImage
from insula.model.units import format_size


@click.group(cls=Noun, epilog="Example: insula image list")
def image() -> None:
    """Build, list, delete and prune images."""


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
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"{path} cannot be read as a recipe: {cause}", code="bad_recipe") from cause


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
