"""What an ordinary user rewinds and multiplies: his own files are his to read alone, and no right of root's helps him."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.island import Island, island

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.limit(300)]


@pytest.fixture
def there(home: Path, tiny: str, tmp_path: Path) -> Iterator[Island]:
    with island(tmp_path, home / "images") as made:
        yield made


def test_forks_of_running_machines_and_of_forks_go_on(there: Island) -> None:
    user = there.user("owner", 65534)
    user.insula("run", "-q", "--cold", "--detach", "--name", "web", "--memory", "128M", "--network", "none", "tiny")
    user.insula("exec", "web", "--", "sh", "-c", "echo memo > /run/memo")
    user.insula("fork", "-q", "--name", "child", "web")
    user.insula("fork", "-q", "--name", "grandchild", "child")
    for name in ("web", "child", "grandchild"):
        assert user.insula("exec", name, "--", "sh", "-c", "cat /run/memo; hostname").stdout == f"memo\n{name}\n"
    user.insula("snapshot", "create", "child@now")
    user.insula("snapshot", "restore", "child@now")
    assert user.insula("exec", "child", "--", "cat", "/run/memo").stdout == "memo\n"
    user.insula("delete", "--force", "web", "child", "grandchild")
