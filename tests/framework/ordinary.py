"""An ordinary user, had from root: what that user needs of root's own home is made reachable in a mount namespace."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from insula.host.native import native_path
from tests.framework.project import ROOT

# nobody: no rights, no group, no file of this computer.
AS_A_USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]

# For a shell in a mount namespace of its own. Arguments: an empty folder, our home, then what of it must be seen: the clone and
# the prefixes of the Python that runs this. Everything else of our home is gone from sight.
REACHABLE = r"""
reachable() {
    scratch=$1 ours=$2; shift 2
    mkdir -p "$scratch"
    mount --bind "$ours" "$scratch"
    mount -t tmpfs -o mode=755 tmpfs "$ours"
    for path; do
        case $path in "$ours"/*)
            mkdir -p "$path"
            mount --rbind "$scratch/${path#"$ours"/}" "$path"
        esac
    done
}
"""


def needed() -> list[str]:
    """The arguments of REACHABLE after the first."""
    return [os.path.expanduser("~"), os.fspath(ROOT), sys.prefix, sys.base_prefix]


# Arguments: a folder, in which the user's home is to be, what the native parts are kept in, those of REACHABLE, and the command.
_WITH_A_HOME = (
    REACHABLE
    + r"""
set -e
folder=$1; shift
mkdir -p "$folder/cache/insula"
cp -a "$1" "$2" "$folder/cache/insula/"; shift 2
chown -R 65534:65534 "$folder"
mount --bind "$folder" /mnt
reachable "$folder.seen" "$1" "$2" "$3" "$4"; shift 4
exec "$@"
"""
)


def with_a_home(folder: Path, argv: Sequence[str]) -> list[str]:
    """The words that do ``argv`` as an ordinary user, whose home is ``folder``, seen as /mnt, with keeper and probe in its
    cache."""
    built = [os.fspath(native_path(name).parents[1]) for name in ("insula-probe", "insula-keeper")]
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _WITH_A_HOME, "sh", os.fspath(folder)]
    return [*words, *built, *needed(), *AS_A_USER, *argv]
