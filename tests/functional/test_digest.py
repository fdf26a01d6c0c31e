"""The same recipe gives the same image, whoever builds it: root, or a user who has nothing but a range of ids."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from insula.images.catalogue import get
from insula.store.names import Home
from tests.framework.ordinary import REACHABLE, needed

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.limit(900)]

# In a mount namespace that goes with it: a user with subordinate ids, a home on a small disk, and, of root's own home,
# only the Python that runs this. Arguments: scratch folder, then those of `needed`.
_BUILD = r"""
set -eu
scratch=$1 clone=$3 python=$4/bin/python
grep -v '^nobody:' /etc/subuid > "$scratch/ids" || true
echo nobody:1100000000:65536 >> "$scratch/ids"
mount --bind "$scratch/ids" /etc/subuid
mount --bind "$scratch/ids" /etc/subgid
shift
reachable "$scratch/ours" "$@"
mount -t tmpfs -o mode=700,uid=65534,gid=65534,size=1g tmpfs /mnt
cd /mnt
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \
    env -i PATH="$PATH" HOME=/mnt TMPDIR=/mnt INSULA_HOME=/mnt/insula PYTHONPATH="$clone/src" PYTHONDONTWRITEBYTECODE=1 \
    "$python" -m insula image build --json tiny
"""


def test_root_and_a_user_build_the_same(home: Path, tiny: str, tmp_path: Path) -> None:
    theirs = _built_by_a_user(tmp_path)
    ours = get(Home(home), tiny)
    assert ours.digest in theirs.stdout.decode(), theirs.stdout.decode() + theirs.stderr.decode()[-4000:]


def _built_by_a_user(scratch: Path) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", REACHABLE + _BUILD, "sh", os.fspath(scratch), *needed()],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return done
