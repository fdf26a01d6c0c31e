"""The documents: every link leads somewhere, every page is found, every command shown exists, no word is out of place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.framework.project import ROOT, project_files

PAGES = [path for path in project_files() if path.suffix == ".md"]
DECISIONS = ROOT / "docs" / "decisions"

# Images take their mirror from the host's own apt; libraries come from wherever pip is told. So no host is named, and
# neither is any folder of the computers this was written on. Written so that this file does not match itself.
FORBIDDEN = re.compile(
    r"(deb|security|snapshot|archive|ports)\.(debian|ubuntu)\.(org|com)|pypi\.(org|python\.org)|pythonhosted\.org|registry\.npmjs"
    r"|/work/(main|shared)|/root/(setup|\.pyenv)|/opt/pypi|TODO_DOC"
)

_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def _links(page: Path) -> list[Path]:
    """The local files a page links to."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [(page.parent / target).resolve() for target, _ in _LINK.findall(text) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [str(target) for target in _links(page) if not target.exists()] == []


def test_every_page_is_found_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        waiting += [target for target in _links(page) if target.exists()]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in seen] == []


def test_no_word_is_out_of_place() -> None:
    found = []
    for path in project_files():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
            if match := FORBIDDEN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


def test_the_forbidden_words_are_recognised() -> None:
    for parts in (("http://deb.debian", ".org/debian"), ("https://py", "pi.org/simple"), ("/work", "/main/src")):
        assert FORBIDDEN.search("".join(parts))
    assert not FORBIDDEN.search("the debian archive, /workspace/main and /usr/share")


def test_decisions_are_numbered_and_complete() -> None:
    names = sorted(path.name for path in DECISIONS.glob("*.md"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
    for name in names:
        text = (DECISIONS / name).read_text()
        assert re.match(r"# \d{4}\. ", text), name
        for heading in ("## Decision", "## Why", "## Price"):
            assert heading in text, f"{name} lacks '{heading}'"


def test_commands_in_the_readme_exist() -> None:
    import click

    from insula.cli.main import cli

    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    shown = re.findall(r"(?:^\$ |&& |\| )\S*\binsula ([^#&|\n]*)", "\n".join(blocks), re.MULTILINE)
    ours = [words.split() for words in shown]
    assert ours, "the README shows no command"
    for words in ours:
        command: click.Command | None = cli
        context = click.Context(cli)
        for word in (word for word in words if not word.startswith("-")):
            if not isinstance(command, click.Group):
                break
            command = command.get_command(context, word)
            assert command is not None, f"the README shows 'insula {' '.join(words)}', and there is no such command"
