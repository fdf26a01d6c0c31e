"""Sizes, names, specs and transitions: what people write, and what is refused."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from insula.errors import DamagedRecord, UsageError, WrongState
from insula.model.identity import new_identity
from insula.model.lifecycle import check_transition, is_allowed, is_already
from insula.model.names import check_machine_name, generate_machine_name, nearest, split_location
from insula.model.spec import MachineSpec, check_spec
from insula.model.status import State
from insula.model.units import GIB, MIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("2GiB", 2 * GIB),
        ("1.5g", 3 * GIB // 2),
        ("4096", 4096),
        (" 1 kb ", 1024),
        ("1T", 1024 * GIB),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1G", "1X", "1 G B", "0x10", "1e9", "½G", "٣G", "9" * 400, "1." + "9" * 5000])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_size(text)
    assert error.value.code == "bad_size"
    assert error.value.hint


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (512 * MIB, "512 MiB"), (10 * GIB, "10 GiB")]
)
def test_sizes_are_shown_short(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("name", ["a", "web", "web-1", "a" * 63])
def test_good_names(name: str) -> None:
    assert check_machine_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "Web",
        "1a",
        "-a",
        "a-",
        "a" * 64,
        "a b",
        "a\n",
        "é",
        ".new-x",
        "a\x00b",
        "--force",
        "a\x1b[31m",
    ],
)
def test_hostile_names_are_refused_and_shown_harmless(name: str) -> None:
    with pytest.raises(UsageError) as error:
        check_machine_name(name)
    assert error.value.code == "bad_name"
    assert error.value.message.isprintable()


def test_generated_names_are_good_names() -> None:
    for _ in range(50):
        check_machine_name(generate_machine_name())


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("debain", ["debian"]),
        ("tinny", ["tiny"]),
        ("debian:11", ["debian:12", "debian"]),
        ("deb", ["debian", "debian:12"]),
        ("ubuntu", []),
        ("alpine", []),
        ("fedora", []),
        ("d", []),
        ("", []),
    ],
)
def test_only_what_is_alike_is_offered(name: str, offered: list[str]) -> None:
    assert nearest(name, ["debian", "debian:12", "tiny", "web"]) == offered


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc", ("web", "/etc")),
        ("web:", ("web", "")),
        ("/a:b", (None, "/a:b")),
        ("./a:b", (None, "./a:b")),
        ("file", (None, "file")),
        (":x", (None, ":x")),
    ],
)
def test_locations(text: str, place: tuple[str | None, str]) -> None:
    assert split_location(text) == place


@pytest.mark.parametrize(
    "spec",
    [
        MachineSpec(cpus=0),
        MachineSpec(cpus=65),
        MachineSpec(cpus=-1),
        MachineSpec(memory=1),
        MachineSpec(memory=512 * MIB + 1),
        MachineSpec(disk=0),
        MachineSpec(disk=1 << 60),
    ],
)
def test_impossible_shapes_are_refused(spec: MachineSpec) -> None:
    with pytest.raises(UsageError) as error:
        check_spec(spec)
    assert error.value.code == "bad_size"


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (MachineSpec(memory=512), "did you mean 512M? "),
        (MachineSpec(memory=2), "did you mean 2G? "),
        (MachineSpec(disk=10), "did you mean 10G? "),
        (MachineSpec(memory=1), "did you mean 1G? "),
        (MachineSpec(memory=64 * MIB), "ask for 96 MiB to 512 GiB"),
        (MachineSpec(memory=0), "ask for "),
    ],
)
def test_a_size_without_its_unit_is_recognized(spec: MachineSpec, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        check_spec(spec)
    assert (error.value.hint or "").startswith(hint)


def test_specs_refuse_unknown_fields() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.json.decode(b'{"cpus": 1, "colour": "red"}', type=MachineSpec)


def test_every_refusal_says_the_state_and_the_verb() -> None:
    verbs = ("start", "stop", "restart", "pause", "resume", "rename", "delete", "exec", "copy", "console")
    states = (State.STOPPED, State.STARTING, State.RUNNING, State.PAUSED)
    for verb, state in itertools.product(verbs, states):
        if is_allowed(verb, state) or is_already(verb, state):
            check_transition("web", verb, state)
        else:
            with pytest.raises(WrongState, match=f"web is {state}: cannot "):
                check_transition("web", verb, state)


@pytest.mark.parametrize(
    ("verb", "state"),
    [("start", State.RUNNING), ("stop", State.STOPPED), ("pause", State.PAUSED), ("resume", State.RUNNING)],
)
def test_what_is_so_already_is_no_error(verb: str, state: State) -> None:
    assert is_already(verb, state)
    assert not is_allowed(verb, state)
    check_transition("web", verb, state)
    assert not any(is_already(verb, other) for other in State if other is not state)


def test_a_refusal_knows_the_next_step() -> None:
    for verb, state, step in (
        ("resume", State.STOPPED, "insula start web"),
        ("start", State.PAUSED, "insula resume web"),
        ("restart", State.STOPPED, "insula start web"),
        ("pause", State.STOPPED, "insula start web"),
    ):
        with pytest.raises(WrongState) as error:
            check_transition("web", verb, state)
        assert step in (error.value.hint or "")


def test_a_broken_machine_says_why_whatever_is_asked() -> None:
    with pytest.raises(DamagedRecord, match="torn") as error:
        check_transition("web", "start", State.BROKEN, "machine.json is torn")
    assert error.value.hint == (
        "bring the file back, or use the Insula that wrote it; to give the machine up, disks and all: insula delete --force web"
    )


def test_identities_share_nothing() -> None:
    first, second = new_identity(), new_identity()
    for field in set(first.__struct_fields__) - {"more_macs"}:
        assert getattr(first, field) != getattr(second, field)
