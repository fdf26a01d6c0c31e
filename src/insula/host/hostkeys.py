"""SSH host keys for guests, made here: an emulated guest takes long for what costs this computer some milliseconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from insula.host.process import find_program, run

_PATIENCE = 60.0  # seconds; an RSA key is a matter of luck


def make_host_key(kind: str, comment: str, folder: Path) -> tuple[tuple[str, bytes], ...]:
    """A fresh key of ``kind`` (``ed25519``, ``ecdsa``, ``rsa``): the private and the public file, names and contents.

    For a moment they are files that only their owner may read, in a folder of their own below ``folder``. Nothing on a computer
    without ssh-keygen. Raises ChildFailed.
    """
    if find_program("ssh-keygen") is None:
        return ()
    name = f"ssh_host_{kind}_key"
    with tempfile.TemporaryDirectory(prefix="keys-", dir=folder) as place:
        key = Path(place) / name
        run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", key], timeout=_PATIENCE)
        public = key.with_name(f"{name}.pub")
        return (name, key.read_bytes()), (public.name, public.read_bytes())
