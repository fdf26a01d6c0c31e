"""An ordinary user, had from root: what that user needs of root's own home is made reachable in a mount namespace."""

from __future__ import annotations

import os
import sys

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
