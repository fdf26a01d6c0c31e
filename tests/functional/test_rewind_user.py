"""What an ordinary user rewinds and multiplies: his own files are his to read alone, and no right of root's helps him. His
machines run as users of their own where he was granted ids, and as himself elsewhere."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.island import Island, User, island

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.limit(300)]

UID = 65534
FIRST = 300_000


@pytest.fixture
def there(home: Path, tiny: str, tmp_path: Path) -> Iterator[Island]:
    with island(tmp_path, home / "images") as made:
        yield made


def seen(user: User, name: str) -> dict[str, str]:
    layers = json.loads(user.insula("show", "--security", name, "--json").stdout)[0]["layers"]
    return {layer["name"]: layer["state"] for layer in layers}


def users_of(there: Island) -> set[int]:
    """The users of the QEMUs on the island."""
    lines = there.root("ps", "-eo", "uid,stat,comm", "--no-headers").splitlines()
    return {int(words[0]) for words in map(str.split, lines) if words[2].startswith("qemu") and words[1][0] != "Z"}


@pytest.mark.parametrize("granted", [True, False], ids=["granted", "as himself"])
def test_forks_of_running_machines_and_of_forks_go_on(there: Island, granted: bool) -> None:
    if granted:
        there.grant(UID, FIRST)
    user = there.user("owner", UID)
    user.insula("run", "-q", "--cold", "--detach", "--name", "web", "--memory", "128M", "--network", "none", "tiny")
    user.insula("exec", "web", "--", "sh", "-c", "echo memo > /run/memo")
    user.insula("fork", "-q", "--name", "child", "web")
    user.insula("fork", "-q", "--name", "grandchild", "child")
    for name in ("web", "child", "grandchild"):
        assert user.insula("exec", name, "--", "sh", "-c", "cat /run/memo; hostname").stdout == f"memo\n{name}\n"
        assert seen(user, name)["own user"] == ("holds" if granted else "absent")
    users = users_of(there)
    assert len(users) == (3 if granted else 1)
    assert all(FIRST <= uid < FIRST + 65536 if granted else uid == UID for uid in users)
    user.insula("snapshot", "create", "child@now")
    user.insula("snapshot", "restore", "child@now")
    assert user.insula("exec", "child", "--", "cat", "/run/memo").stdout == "memo\n"
    memory = (user.seen / "machines/child/snapshots/now/memory").stat()
    assert (memory.st_uid, stat.S_IMODE(memory.st_mode)) == (UID, 0o440 if granted else 0o400)
    user.insula("delete", "--force", "web", "child", "grandchild")
    assert users_of(there) == set()


@pytest.mark.full
def test_a_machine_that_is_a_sub_id_is_seen_into_and_ended_though_nobody_obeys(there: Island) -> None:
    there.grant(UID, FIRST)
    user = there.user("owner", UID)
    user.insula("run", "-q", "--cold", "--detach", "--name", "web", "--memory", "128M", "--network", "none", "tiny")
    user.insula("snapshot", "create", "web@first")
    user.insula("fork", "-q", "--name", "child", "web@first")
    user.insula("snapshot", "create", "child@changed")
    assert json.loads(user.insula("snapshot", "list", "child", "--json").stdout)[0]["method"] in ("changed-pages", "mapped-ram")
    user.insula("delete", "--force", "web")
    lines = there.root("ps", "-ww", "-eo", "pid,uid,args", "--no-headers").splitlines()
    keepers = [line.split(None, 4) for line in lines if "insula-keeper" in line]
    (porter,) = [words[0] for words in keepers if words[3] == "porter"]
    (inner,) = [words[0] for words in keepers if words[3] == "inner" and int(words[1]) != UID]
    there.root("kill", "-KILL", porter)
    there.root("kill", "-STOP", inner)
    user.insula("stop", "--force", "child")
    assert users_of(there) == set()
    user.insula("delete", "child")
