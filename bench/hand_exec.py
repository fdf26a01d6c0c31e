"""`exec` by hand: a process that imports click and what the work itself needs, and speaks the raw frames. Run, never imported.

python -I hand_exec.py SOCKET WORD...
"""

import os
import select
import signal
import socket
import struct
import sys

import click  # noqa: F401 - what a command line needs: loading it is the work here

_HEADER = struct.Struct("<2sBBII")
_FIELD = struct.Struct("<HI")
_OPEN, _DATA, _EOF, _RESULT = 1, 2, 3, 7
_VERB, _ARGV, _CODE, _ERROR = 1, 2, 20, 22


def _frame(kind: int, payload: bytes) -> bytes:
    return _HEADER.pack(b"IN", kind, 0, 1, len(payload)) + payload


def _field(tag: int, content: bytes) -> bytes:
    return _FIELD.pack(tag, len(content)) + content


def _fields(payload: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(payload):
        tag, length = _FIELD.unpack_from(payload, at)
        at += _FIELD.size + length
        found[tag] = payload[at - length : at]
    return found


def run(path: str, words: list[str]) -> int:
    """Run ``words`` in the guest behind the keeper's socket; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        wanted = _field(_VERB, b"exec") + b"".join(_field(_ARGV, os.fsencode(word)) for word in words)
        connection.sendall(_frame(_OPEN, wanted) + _frame(_EOF, b""))
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        held = b""
        while True:
            poller.poll()
            held += connection.recv(262_144)
            while len(held) >= _HEADER.size and len(held) >= _HEADER.size + _HEADER.unpack_from(held)[4]:
                _, kind, stream, _, length = _HEADER.unpack_from(held)
                payload, held = held[_HEADER.size : _HEADER.size + length], held[_HEADER.size + length :]
                if kind == _DATA:
                    os.write(stream, payload)
                elif kind == _RESULT:
                    answer = _fields(payload)
                    return 125 if _ERROR in answer else int.from_bytes(answer[_CODE], "little")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
