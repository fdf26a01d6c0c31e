"""Building the native parts: without a warning, small, once, and never half."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from insula.errors import UsageError
from insula.host.native import FLAGS, build, find_compiler, native_digest, native_path, native_sources

_HOST = os.uname().machine


@pytest.mark.parametrize("part", ["agent", "keeper"])
def test_the_sources_compile_without_a_warning(part: str, tmp_path: Path) -> None:
    sources = [*(native_sources() / part).glob("*.c"), *(native_sources() / "wire").glob("*.c")]
    compiler = find_compiler("amd64" if _HOST == "x86_64" else _HOST)
    subprocess.run([*compiler, *FLAGS, "-Werror", f"-I{native_sources()}", "-o", tmp_path / part, *sources], check=True)


@pytest.mark.parametrize("name", ["insula-agent", "insula-keeper"])
def test_programs_are_small_and_static(name: str) -> None:
    program = native_path(name).read_bytes()
    assert len(program) < 150 * 1024
    assert b"ld-musl" not in program
    assert b"ld-linux" not in program


def test_digests_tell_the_parts_apart_and_stay() -> None:
    agent = native_digest("agent")
    native_digest.cache_clear()
    assert native_digest("agent") == agent != native_digest("keeper")
    assert len(agent) == 32


def test_an_architecture_has_several_names_and_must_be_known() -> None:
    assert native_path("insula-agent", _HOST) == native_path("insula-agent")
    with pytest.raises(UsageError):
        native_path("insula-agent", "pdp11")


def test_two_builders_at_once_leave_one_whole_program(tmp_path: Path) -> None:
    """And nothing of one that was killed."""
    place = tmp_path / "insula" / f"native-{native_digest('keeper')}" / native_path("insula-keeper").parent.name
    place.mkdir(parents=True)
    (place / ".insula-keeper.half").write_text("half")
    (place / ".0123abcd").mkdir()
    code = "from insula.host.native import native_path; print(native_path('insula-keeper'))"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    builders = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    told = {builder.communicate()[0] for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0]
    (path,) = (Path(os.fsdecode(line.strip())) for line in told)
    if path.is_relative_to(tmp_path):  # else it came ready-made with the package
        assert sorted(each.name for each in path.parent.iterdir()) == [".lock", "insula-keeper"]


@pytest.mark.full
@pytest.mark.limit(900)
@pytest.mark.parametrize("part", ["agent", "keeper"])
@pytest.mark.parametrize("arch", ["arm64", "riscv64", "s390x", "i386"])
def test_foreign_builds(part: str, arch: str, tmp_path: Path) -> None:
    build(part, arch, tmp_path / part)
    machine = int.from_bytes((tmp_path / part).read_bytes()[18:20], "big" if arch == "s390x" else "little")
    assert machine == {"arm64": 183, "riscv64": 243, "s390x": 22, "i386": 3}[arch]
