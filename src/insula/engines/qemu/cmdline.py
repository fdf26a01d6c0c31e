"""QEMU's arguments. Pure: a board and the numbers of its descriptors go in, the words come out, golden-file tested.

Accepted by QEMU 8.2 and later. What a later version words differently is decided here by ``version``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from insula.engines.qemu.board import Board, Channel, File, Netdev, Part

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# A panic ends the machine, so that its reason is known; a guest that reboots itself reboots in place.
_ACTIONS = "panic=shutdown,reboot=reset,shutdown=poweroff,watchdog=reset"


def build_argv(board: Board, descriptors: Mapping[str, int], binary: str) -> list[str]:
    """The whole command. ``descriptors`` maps each key of the board to an open descriptor's number."""
    words: list[str] = [binary]

    def add(option: str, value: str | None = None) -> None:
        words.append(option)
        if value is not None:
            words.append(value)

    add("-nodefaults")
    add("-no-user-config")
    add("-name", f"guest={_escape(board.name)},debug-threads=on")
    add("-uuid", board.uuid)
    add("-sandbox", _SANDBOX)
    add("-msg", "timestamp=on")
    add("-display", "none")
    add("-action", _ACTIONS)
    add("-rtc", "base=utc")
    add("-boot", "strict=on")
    for file in board.files:
        add("-add-fd", _add_fd(file, descriptors))
    add("-machine", _pairs(board.machine, first="type"))
    add("-accel", _pairs(board.accelerator, first="accel"))
    add("-cpu", board.cpu)
    add("-smp", _pairs(board.processors))
    add("-m", _pairs(board.memory))
    for part in board.objects:
        add("-object", _part(part))
    for node in board.nodes:
        add("-blockdev", json.dumps(node))
    for channel in board.channels:
        add("-chardev", _channel(channel, descriptors))
    if board.tpm is not None:
        add("-tpmdev", f"emulator,id=tpm0,chardev={board.tpm}")
    for monitor in board.monitors:
        add("-mon", f"chardev={monitor},mode=control")
    for netdev in board.netdevs:
        add("-netdev", _netdev(netdev, descriptors[netdev.key]))
    for part in board.devices:
        add("-device", _part(part))
    for option, value in board.boot:
        add(option, value)
    if board.loads:
        add("-S")
        add("-incoming", "defer")
    return words


def _add_fd(file: File, descriptors: Mapping[str, int]) -> str:
    return f"fd={descriptors[file.key]},set={file.set},opaque={_escape(file.key)}"


def _channel(channel: Channel, descriptors: Mapping[str, int]) -> str:
    words = f"socket,id={channel.id},fd={descriptors[channel.key]}"
    return f"{words},server=on,wait=off" if channel.listening else words


def _netdev(netdev: Netdev, descriptor: int) -> str:
    if netdev.tap:
        return f"tap,id={netdev.id},fd={descriptor},vhost=off"
    return f"stream,id={netdev.id},addr.type=fd,addr.str={descriptor}"


def _part(part: Part) -> str:
    return ",".join((part.kind, *(f"{key}={_value(value)}" for key, value in part.properties.items())))


def _pairs(properties: Mapping[str, object], first: str | None = None) -> str:
    """``first`` is the key whose value may stand alone at the front, as people write it."""
    return ",".join(_value(value) if key == first else f"{key}={_value(value)}" for key, value in properties.items())


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _escape(str(value))


def _escape(text: str) -> str:
    """A comma ends a value unless it is doubled."""
    return text.replace(",", ",,")
