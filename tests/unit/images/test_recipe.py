"""Recipes: what is accepted, and that a broken one is told by line and key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import NotFound, UsageError
from insula.images.recipe import load_recipe, parse_recipe, recipes, recipes_folder, unknown_image

GOOD = """\
name = "web"
suite = "trixie"
packages = [
    "nginx",
    "curl",
]
commands = ["true"]

[kernel]
package = "linux-image-cloud-amd64"

[[files]]
path = "/etc/motd"
content = "hello"

[[files]]
path = "/etc/secret"
content = "x"
mode = "0600"
owner = "0:42"
"""


def test_a_whole_recipe_is_understood() -> None:
    recipe = parse_recipe(GOOD)
    assert recipe.packages == ("nginx", "curl")
    assert (recipe.boot, recipe.disk_bytes) == ("disk", 10 << 30)
    assert [(file.path, file.mode, file.owner) for file in recipe.files] == [
        ("/etc/motd", "0644", "0:0"),
        ("/etc/secret", "0600", "0:42"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('name = "web"', "name = web", "line 1: "),
        ('name = "web"', 'name = "We b"', "line 1: name: "),
        ('name = "web"\n', "", "name: is missing"),
        ('suite = "trixie"', "suite = 13", "line 2: suite: "),
        ('suite = "trixie"', 'suit = "trixie"', "line 2: suit: is not a key"),
        ('"curl"', "7", "line 3: packages[1]: "),
        ('"curl"', '"curl; rm -rf /"', "line 3: packages[1]: "),
        ('"nginx"', '"--allow-unauthenticated"', "line 3: packages[0]: "),
        ('commands = ["true"]', 'boot = "floppy"', "line 7: boot: "),
        ('commands = ["true"]', 'disk = "big"', "line 7: disk: "),
        ('commands = ["true"]', 'disk = "1M"', "line 7: disk: "),
        ('commands = ["true"]', 'boot = "direct"\ncommands = ["true"]', "line 8: commands: "),
        ('commands = ["true"]', 'boot = "direct"', "line 3: packages: a direct-boot image is made of busybox"),
        ('package = "linux-image-cloud-amd64"', "package = 3", "line 10: kernel.package: "),
        ('package = "linux-image-cloud-amd64"', 'packages = "x"', "line 10: kernel.packages: is not a key"),
        ('package = "linux-image-cloud-amd64"\n', "", "line 9: kernel.package: is missing"),
        ('path = "/etc/motd"', 'path = "/etc/../motd"', "line 13: files[0].path: "),
        ('path = "/etc/motd"', 'path = "motd"', "line 13: files[0].path: "),
        ('mode = "0600"', "mode = 384", "line 19: files[1].mode: "),
        ('mode = "0600"', 'mode = "rw"', "line 19: files[1].mode: "),
        ('owner = "0:42"', 'owner = "root"', "line 20: files[1].owner: "),
        ('owner = "0:42"', 'user = "root"', "line 20: files[1].user: is not a key"),
    ],
)
def test_a_broken_recipe_names_line_and_key(old: str, new: str, place: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as error:
        parse_recipe(GOOD.replace(old, new), "web.toml")
    assert error.value.code == "bad_recipe"
    assert error.value.message.startswith("web.toml")
    assert place in error.value.message


@settings(max_examples=25)
@given(st.text(max_size=300))
def test_any_text_is_told_to_be_no_recipe(text: str) -> None:
    with pytest.raises(UsageError) as error:  # never by chance: a recipe needs three keys of their own names
        parse_recipe(text)
    assert error.value.code == "bad_recipe"


def test_the_same_meaning_has_the_same_bytes() -> None:
    shuffled = GOOD.replace('name = "web"\nsuite = "trixie"\n', '# a comment\nsuite = "trixie"\nname = "web"\ndisk = "10G"\n')
    assert parse_recipe(shuffled).canonical() == parse_recipe(GOOD).canonical()
    assert parse_recipe(GOOD.replace("hello", "hallo")).canonical() != parse_recipe(GOOD).canonical()


def test_the_recipes_that_come_with_insula() -> None:
    known = recipes()
    assert {"debian", "debian:13", "debian:12", "tiny"} <= set(known)
    assert known["debian"] is known["debian:13"]
    assert (known["tiny"].boot, known["debian"].boot) == ("direct", "disk")
    assert known["debian:12"].kernel.suite == "bookworm-backports"


def test_recipes_and_what_goes_with_them_name_no_archive_host() -> None:
    for path in [*recipes_folder().glob("*.toml"), *recipes_folder().with_name("guest").rglob("*")]:
        assert path.is_dir() or "://" not in path.read_text()


def test_nearest_names_are_offered() -> None:
    with pytest.raises(NotFound, match="no image or recipe named 'debain'") as error:
        load_recipe("debain")
    assert error.value.code == "image_not_found"
    assert "debian" in (error.value.hint or "")


def test_what_there_is_is_offered_for_a_name_like_none() -> None:
    with pytest.raises(NotFound) as error:
        load_recipe("nope")
    assert error.value.hint == "there is debian, debian-12, debian:12, debian:13, tiny; all of them: insula image list"
    assert unknown_image("nope", [f"image-{number}" for number in range(20)]).hint == (
        "there is image-0, image-1, image-2, image-3, image-4, image-5, image-6, image-7, …; all of them: insula image list"
    )


@pytest.mark.parametrize("package", ["busybox-static", "busybox-static=1:1.37.0-6+b3", "busybox-static/trixie-backports"])
def test_a_direct_boot_image_needs_busybox(package: str) -> None:
    text = 'name = "x"\nsuite = "trixie"\nboot = "direct"\n{}\n[kernel]\npackage = "linux-image-cloud-amd64"\n'
    assert parse_recipe(text.format(f'packages = ["{package}"]')).packages == (package,)
    with pytest.raises(UsageError, match=r"recipe, line 3: boot: .*'busybox-static' must be among its packages") as error:
        parse_recipe(text.format(""))
    assert error.value.code == "bad_recipe"
