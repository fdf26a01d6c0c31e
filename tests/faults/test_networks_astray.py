"""Hosts on which networks have it hard: several homes and users, a reboot. The machines are real,
the host is one of their own (tests/framework/island.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.island import Island, User, island

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.limit(600)]

_MACHINE = ("--memory", "128M")


@pytest.fixture
def there(home: Path, tiny: str, tmp_path: Path) -> Iterator[Island]:
    with island(tmp_path, home / "images") as made:
        before = made.seen()
        yield made
        assert made.seen() == before


def _run(user: User, name: str, *words: str) -> str:
    """A new machine's address."""
    user.insula("run", "-q", "--name", name, *_MACHINE, *words, "tiny")
    return _address(user, name)


def _address(user: User, name: str) -> str:
    address: str = user.told("show", name)[0]["nics"][0]["ipv4"]
    return address


def _delete(user: User, *names: str) -> None:
    user.insula("delete", "--force", *names)
    assert user.told("list") == []


def test_homes_and_users_are_not_in_each_others_way(there: Island) -> None:
    """Two homes of root's and two users, each with machines of the same names on a network of the same name."""
    users = [there.user("one", 0), there.user("two", 0), there.user("anna", 65534), there.user("bob", 65533)]
    for user in users:
        _run(user, "web", "-p", f"{8000 + users.index(user)}:80")
        _run(user, "db")
    for user in users:
        user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
    one, two = (user.told("network", "show", "nat")["ipv4"] for user in users[:2])
    assert one != two
    for user in users:
        told = user.refused("run", *_MACHINE, "--name", "third", "-p", f"{8000 + (user is users[0])}:80", "tiny")
        assert "is taken by " in told
        assert "insula-keeper" in told or user.uid  # a user is not shown who of others has it
        assert [machine["name"] for machine in user.told("list")] == ["db", "web"]
    _delete(users[0], "web", "db")  # the others' live on
    for user in users[1:]:
        user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
        _delete(user, "web", "db")


@pytest.mark.parametrize("uid", [0, 65534])
def test_a_host_that_was_rebooted_has_its_networks_again(there: Island, uid: int) -> None:
    user = there.user("owner", uid)
    addresses = [_run(user, "web", "-p", "8000:80"), _run(user, "db")]
    there.reboot()
    assert [machine["state"] for machine in user.told("list")] == ["stopped", "stopped"]
    user.insula("start", "db", "web")
    assert [_address(user, "web"), _address(user, "db")] == addresses
    user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
    assert [port["listening"] for port in user.told("ports")] == [True]
    _delete(user, "web", "db")
