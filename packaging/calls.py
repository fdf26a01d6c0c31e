"""Compile lists of allowed system calls (src/insula/isolation/filters/*.calls) into what the kernel takes: classic BPF.

Run it after a change of a list; a test compares what is committed. Formats: linux/filter.h (struct sock_filter), linux/seccomp.h
(struct seccomp_data: number, architecture, instruction pointer, six arguments of 64 bits), seccomp(2).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[1] / "src/insula/isolation/filters"
_ARCHITECTURES: Final = {"amd64": 0xC000003E}  # linux/audit.h, AUDIT_ARCH_X86_64
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_ERRORS: Final = {"EPERM": 1, "ENOTTY": 25, "ENOSYS": 38}
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets
_LINE: Final = re.compile(r"(\d+) \w+(?:: (.+))?")
_CONDITION: Final = re.compile(r"([0-5]) (?:& (0x[0-9a-f]+|\d+) )?= (0x[0-9a-f]+|\d+)")

Code = list[tuple[int, int, int, int]]  # operation, instructions to skip if so, and if not, its number
_REFUSED: Final[Code] = [(_RETURN, 0, 0, _ERRNO | _ERRORS["EPERM"])]


def compile_calls(text: str, arch: str) -> bytes:
    """The program for a list. Raises ValueError with the line that is none."""
    calls = dict(_read_line(line) for line in text.splitlines() if line and not line.startswith("#"))
    # Where what is said of numbers changes: from each of these on, up to the next, it is the same.
    parts: list[tuple[int, Code]] = [(0, _REFUSED)]
    for number in sorted({each for call in calls for each in (call, call + 1)}):
        code = calls.get(number, _REFUSED)
        if code != parts[-1][1]:
            parts.append((number, code))
    head: Code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[arch]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*head, *_tree(parts)])


def _read_line(line: str) -> tuple[int, Code]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"not a call: {line!r}")
    return int(found[1]), _code(found[2], line)


def _code(conditions: str | None, line: str) -> Code:
    if conditions is None:
        return [(_RETURN, 0, 0, _ALLOW)]
    code: Code = []
    *alternatives, last = conditions.split(" | ")
    if last in _ERRORS:
        refused: Code = [(_RETURN, 0, 0, _ERRNO | _ERRORS[last])]
    else:
        alternatives, refused = [*alternatives, last], _REFUSED
    for condition in alternatives:
        found = _CONDITION.fullmatch(condition)
        if found is None:
            raise ValueError(f"not a condition: {line!r}")
        code.append((_LOAD, 0, 0, _ARGUMENTS + 8 * int(found[1])))
        if found[2]:
            code.append((_AND, 0, 0, int(found[2], 0)))
        code += [(_EQUAL, 0, 1, int(found[3], 0)), (_RETURN, 0, 0, _ALLOW)]
    return code + refused


def _tree(parts: list[tuple[int, Code]]) -> Code:
    """A search by halves, so that no call waits for two hundred comparisons."""
    if len(parts) == 1:
        return parts[0][1]
    middle = len(parts) // 2
    lower, upper = _tree(parts[:middle]), _tree(parts[middle:])
    if len(lower) > 255:
        raise ValueError("more than a jump can skip")
    return [(_AT_LEAST, len(lower), 0, parts[middle][0]), *lower, *upper]


def main() -> None:
    for path in sorted(FOLDER.glob("*.calls")):
        path.with_suffix(".bpf").write_bytes(compile_calls(path.read_text(), path.stem.rpartition("-")[2]))


if __name__ == "__main__":
    main()
