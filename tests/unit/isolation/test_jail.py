from __future__ import annotations

from pathlib import Path

from insula.host.namespaces import IdRange
from insula.host.native import native_path
from insula.isolation.jail import Jail, jail_argv

ROOT = Path("/var/cache/insula/jails/abc")
KERNEL = Path("/home/layers/vmlinuz")


def test_a_machine_of_root_has_its_own_user_and_limits() -> None:
    assert jail_argv(Jail(ROOT, uid=1000000007, shown=((KERNEL, "/boot/kernel"),), largest=4096), ["/keeper", "inner"]) == [
        *(str(native_path("insula-keeper")), "enter", "--show", str(KERNEL), f"{ROOT}/boot/kernel"),
        *("--locked", "--user=1000000007", "--groups="),
        *("--core=0", "--nofile=1024", "--memlock=0", "--fsize=4096", "--nproc=512", "--"),
        *("bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--disable-userns", "--new-session", "--clearenv", "--cap-drop", "ALL", "--hostname", "insula", "--chdir", "/"),
        *("--ro-bind", str(ROOT), "/", "--dev-bind", "/dev/null", "/dev/null", "--as-pid-1", "--", "/keeper", "inner"),
    ]


def test_a_machine_of_a_user_with_granted_ids_is_shown_its_root_too() -> None:
    jail = Jail(ROOT, 308_200, (340_001,), IdRange(300_000, 400_000), ((KERNEL, "/boot/kernel"),))
    words = jail_argv(jail, ["/keeper"])
    assert words[1 : words.index("--core=0")] == [
        *("enter", "--ids=300000,400000,65536", "--show", str(ROOT), "/tmp", "--show", str(KERNEL), "/tmp/boot/kernel"),
        *("--locked", "--user=308200", "--groups=340001"),
    ]
    assert words[words.index("--ro-bind") :][:3] == ["--ro-bind", "/tmp", "/"]
    assert "--new-session" not in words


def test_a_users_machine_drops_nothing_it_may_not_drop() -> None:
    words = jail_argv(Jail(ROOT), ["/keeper"])
    assert words[1:3] == ["enter", "--locked"]
    assert not [word for word in words if word.startswith(("--nproc", "--user=", "--groups"))]


def test_nothing_in_the_jail_can_be_written() -> None:
    words = jail_argv(Jail(ROOT, 5, shown=((KERNEL, "/boot/kernel"),)), ["/keeper"])
    assert not {"--bind", "--tmpfs", "--dev", "--proc", "--mqueue", "--bind-data", "--dir"} & set(words)
    assert words[words.index("--dev-bind") + 1] == "/dev/null"
    assert words.count("--dev-bind") == 1


def test_only_a_machine_of_root_has_a_session_of_its_own() -> None:
    """That of an ordinary user's is its porter's, by which it can be made nice."""
    assert "--new-session" in jail_argv(Jail(ROOT, 5), ["/keeper"])
    assert "--new-session" not in jail_argv(Jail(ROOT), ["/keeper"])


def test_a_device_is_there_only_where_it_is_lent() -> None:
    words = jail_argv(Jail(ROOT, devices=((ROOT / "dev/userfaultfd", "/dev/userfaultfd"),)), ["/keeper"])
    at = words.index("/dev/userfaultfd")
    assert words[at - 2 : at] == ["--dev-bind", str(ROOT / "dev/userfaultfd")]
    assert words.count("--dev-bind") == 2
