"""The room of a tool that reads what a guest may have written: the probe, run as such a tool, gets out of it nowhere."""

from __future__ import annotations

import os
import uuid

from insula.host.native import native_path
from insula.isolation.tool import run_tool
from insula.isolation.uids import jail_ids

# Its own processes are counted, from Linux 5.14 on, per user namespace; before that the user's others would be, too.
_NOT_A_USERS = {"start processes without end"}


def test_nothing_gets_out() -> None:
    probe, uid = native_path("insula-probe"), jail_ids(str(uuid.uuid4())).machine
    words = ["/r/0", f"disk={__file__}", f"record={__file__}", f"folder={os.path.dirname(__file__)}", f"pid={os.getpid()}"]
    done = run_tool(words, readable=[probe], uid=uid, largest=1 << 20, timeout=120)
    tried = dict(line.split("\t")[:2] for line in done.text.splitlines())
    assert tried.pop("done") == "blocked"
    assert len(tried) > 80
    assert {name for name, result in tried.items() if result != "blocked"} <= (set() if uid else _NOT_A_USERS)
