"""Small rooms: modules and functions stay small enough to be read at once. The lists of exceptions may only shrink."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.framework.project import ROOT, project_files, python_files

MODULE_LINES = 500
FUNCTION_LINES = 60

# Name: the lines it had when it was excused. It may not grow, and is struck off once it fits.
EXCUSED_MODULES: dict[str, int] = {}
EXCUSED_FUNCTIONS: dict[str, int] = {}


def test_modules_are_small() -> None:
    sizes = {
        _name(path): len(path.read_bytes().splitlines()) for path in project_files() if path.suffix in (".py", ".c", ".h", ".sh")
    }
    assert _violations(sizes, MODULE_LINES, EXCUSED_MODULES) == []


def test_functions_are_small() -> None:
    sizes = dict(size for path in python_files() for size in _python_functions(path))
    sizes |= dict(size for path in project_files() if path.suffix == ".c" for size in c_functions(path.read_text(), _name(path)))
    assert _violations(sizes, FUNCTION_LINES, EXCUSED_FUNCTIONS) == []


def test_the_ratchet_bites() -> None:
    assert _violations({"a": 11, "b": 10}, 10, {}) == ["a has 11 lines, more than 10"]
    assert _violations({"a": 12}, 10, {"a": 11}) == ["a has 12 lines, more than 11"]
    assert _violations({"a": 9}, 10, {"a": 11}) == ["a fits now (9 lines): strike it off"]
    assert _violations({}, 10, {"a": 11}) == ["a is gone: strike it off"]
    body = "\n".join(["    x();"] * 3)
    assert dict(c_functions(f"int one(void)\n{{\n{body}\n}}\n\nstatic int two(int a,\n    int b) {{\n}}\n", "f.c")) == {
        "f.c:one": 6,
        "f.c:two": 3,
    }


def _violations(sizes: dict[str, int], most: int, excused: dict[str, int]) -> list[str]:
    found = [f"{name} is gone: strike it off" for name in excused if name not in sizes]
    for name, lines in sorted(sizes.items()):
        if lines > excused.get(name, most):
            found.append(f"{name} has {lines} lines, more than {excused.get(name, most)}")
        elif name in excused and lines <= most:
            found.append(f"{name} fits now ({lines} lines): strike it off")
    return found


def _python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{_name(path)}:{node.lineno}:{node.name}", node.end_lineno - node.lineno + 1


# A definition begins in the first column, with a name before its parenthesis, and ends with a brace in the first column.
_C_HEAD = re.compile(r"^(?!typedef|struct|enum|union)[a-z_][\w\s\*]*?\b(\w+)\(", re.IGNORECASE)


def c_functions(text: str, file: str) -> Iterator[tuple[str, int]]:
    """``file:function`` and its number of lines, for each function defined in C source that is laid out as ours is."""
    head: tuple[str, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _C_HEAD.match(line):
            head = (match[1], number)
        if head and line.endswith(";") and not line.startswith((" ", "\t", "}")):
            head = None  # a declaration
        if head and line.startswith("}"):
            yield f"{file}:{head[0]}", number - head[1] + 1
            head = None


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))
