"""What a machine's processes may ask the kernel for: the list means what it says, and what the kernel is given means the list."""

from __future__ import annotations

import os
import runpy
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.isolation import filters
from tests.framework.project import ROOT

_AMD64, _I386 = 0xC000003E, 0x40000003
_ALLOWED, _EPERM, _ENOTTY, _ENOSYS, _KILLED = 0x7FFF0000, 0x00050001, 0x00050019, 0x00050026, 0x80000000
_X32 = 0x40000000


def compiler() -> Callable[[str, str], bytes]:
    made: Callable[[str, str], bytes] = runpy.run_path(str(ROOT / "packaging/calls.py"))["compile_calls"]
    return made


class Listed(NamedTuple):
    """A list, and what the kernel is given of it."""

    text: str
    program: bytes


def listed(jailed: str) -> Listed:
    path = ROOT / f"src/insula/isolation/filters/{jailed}-amd64.calls"
    return Listed(path.read_text(), path.with_suffix(".bpf").read_bytes())


MACHINE, ROOM, SERVER = listed("machine"), listed("room"), listed("server")
each = pytest.mark.parametrize("calls", [MACHINE, ROOM, SERVER], ids=["machine", "room", "server"])


def numbers(calls: Listed = MACHINE) -> dict[str, int]:
    lines = [line.partition(":")[0].split() for line in calls.text.splitlines() if line and not line.startswith("#")]
    return {name: int(number) for number, name in lines}


def verdict(number: int, *arguments: int, arch: int = _AMD64, calls: Listed = MACHINE) -> int:
    """What the program says, run as the kernel does (its classic BPF, as far as the compiler uses it)."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    at = accumulator = 0
    while True:
        operation, so, else_, value = struct.unpack_from("=HBBI", calls.program, 8 * at)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation in (0x15, 0x35):
            at += so if (accumulator == value if operation == 0x15 else accumulator >= value) else else_
        else:
            assert operation == 0x06, hex(operation)
            return int(value)


@each
def test_what_is_committed_was_made_of_the_list(calls: Listed) -> None:
    assert compiler()(calls.text, "amd64") == calls.program, "run: python packaging/calls.py"


@each
def test_the_names_are_those_of_the_numbers(calls: Listed) -> None:
    """As far as this computer knows them (linux-libc-dev)."""
    try:
        with open("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") as stream:
            known = dict(line.split()[1:3] for line in stream if line.startswith("#define __NR_"))
    except FileNotFoundError:
        pytest.skip("linux-libc-dev is not installed")
    named = numbers(calls)
    assert {name: int(known[f"__NR_{name}"]) for name in named if f"__NR_{name}" in known} == named
    assert len(named) > 100


@each
@given(number=st.integers(0, 0xFFFFFFFF))
def test_any_number_gets_what_the_list_says(number: int, calls: Listed) -> None:
    names = {at: name for name, at in numbers(calls).items()}
    expected = {None: {_EPERM}, "clone3": {_ENOSYS}, "ioctl": {_ENOTTY}}.get(names.get(number), {_ALLOWED, _EPERM})
    assert verdict(number, calls=calls) in expected
    assert verdict(number, arch=_I386, calls=calls) == _KILLED
    assert number >= _X32 or verdict(number | _X32, calls=calls) == _EPERM


@each
def test_every_call_without_a_condition_is_allowed(calls: Listed) -> None:
    conditional = {"socket", "socketpair", "clone", "clone3", "ioctl", "prctl"}
    assert {name for name, number in numbers(calls).items() if verdict(number, calls=calls) != _ALLOWED} <= conditional


@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("socket", (1,), True),
        ("socket", (2,), False),  # AF_INET
        ("socket", (16,), False),  # AF_NETLINK
        ("socket", (40,), False),  # AF_VSOCK
        ("clone", (0x3D0F00,), True),  # a thread
        ("clone", (0x1200011,), True),  # a process
        ("clone", (0x10000011,), False),  # CLONE_NEWUSER
        ("clone", (0x40000011,), False),  # CLONE_NEWNET
        ("clone", (0x80,), False),  # CLONE_NEWTIME
        ("ioctl", (0, 0x400454D0), True),  # TUNSETOFFLOAD
        ("ioctl", (0, 0x400454CA), False),  # TUNSETIFF
        ("ioctl", (0, 0x5412), False),  # TIOCSTI
        ("ioctl", (0, 0xFFFFFFFF00005412), False),
        ("ioctl", (0, 0xAE80), True),  # KVM_RUN
        ("prctl", (38,), True),  # PR_SET_NO_NEW_PRIVS
        ("prctl", (24,), False),  # PR_CAPBSET_DROP
    ],
)
def test_arguments_are_looked_at(name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    assert (verdict(numbers()[name], *arguments) == _ALLOWED) == allowed


@pytest.mark.parametrize(
    "name",
    "ptrace process_vm_readv mount unshare setns bpf keyctl io_uring_setup userfaultfd perf_event_open init_module".split(),
)
@each
def test_what_opens_doors_is_not_on_the_list(name: str, calls: Listed) -> None:
    assert name not in numbers(calls)


def test_a_tool_makes_no_socket_and_no_device() -> None:
    assert not {"socket", "socketpair", "connect", "bind", "listen", "accept", "mknod", "memfd_create"} & set(numbers(ROOM))


@pytest.mark.parametrize(
    ("family", "allowed"), [(1, False), (2, True), (10, True), (16, True), (17, False), (38, False), (40, False)]
)
def test_what_serves_networks_has_no_other_sockets(family: int, *, allowed: bool) -> None:
    assert (verdict(numbers(SERVER)["socket"], family, calls=SERVER) == _ALLOWED) == allowed
    assert verdict(numbers(SERVER)["ioctl"], 3, 0x8955, calls=SERVER) == _ALLOWED  # SIOCSARP
    assert verdict(numbers(SERVER)["ioctl"], 3, 0x5412, calls=SERVER) == _ENOTTY  # TIOCSTI


@pytest.mark.parametrize("text", ["read", "0 read: 9 = 1", "0 read: 0 = x | ", "0 read : 0 = 1", "x read"])
def test_a_line_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        compiler()(text, "amd64")


def test_a_filter_is_found_for_this_computer() -> None:
    found = filters.open_filter("machine")
    if os.uname().machine != "x86_64":
        assert found is None
        return
    assert found is not None
    with open(found, "rb") as stream:
        assert stream.read() == MACHINE.program
    assert filters.open_filter("nothing") is None
