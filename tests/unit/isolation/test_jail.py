from __future__ import annotations

from pathlib import Path

from insula.host.native import native_path
from insula.isolation.jail import Jail, jail_argv

ROOT = Path("/var/cache/insula/jails/abc")
KERNEL = Path("/home/layers/vmlinuz")


def test_a_machine_of_root_has_its_own_user_and_limits() -> None:
    assert jail_argv(Jail(ROOT, uid=1000000007, shown=((KERNEL, "/boot/kernel"),), largest=4096), ["/keeper", "inner"]) == [
        *(str(native_path("insula-keeper")), "enter", "--locked", "--user=1000000007", "--groups="),
        *("--core=0", "--nofile=1024", "--memlock=0", "--fsize=4096", "--nproc=512", "--"),
        *("bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--disable-userns", "--new-session", "--clearenv", "--cap-drop", "ALL", "--hostname", "insula", "--chdir", "/"),
        *("--ro-bind", str(ROOT), "/", "--dev-bind", "/dev/null", "/dev/null"),
        *("--ro-bind", str(KERNEL), "/boot/kernel", "--as-pid-1", "--", "/keeper", "inner"),
    ]


def test_a_users_machine_drops_nothing_it_may_not_drop() -> None:
    words = jail_argv(Jail(ROOT), ["/keeper"])
    assert words[1:3] == ["enter", "--locked"]
    assert not [word for word in words if word.startswith(("--nproc", "--user=", "--groups"))]


def test_nothing_in_the_jail_can_be_written() -> None:
    words = jail_argv(Jail(ROOT, 5, shown=((KERNEL, "/boot/kernel"),)), ["/keeper"])
    assert not {"--bind", "--tmpfs", "--dev", "--proc", "--mqueue", "--bind-data", "--dir"} & set(words)
    assert words[words.index("--dev-bind") + 1] == "/dev/null"
    assert words.count("--dev-bind") == 1


def test_only_a_user_of_its_own_has_a_session_of_its_own() -> None:
    """That of an ordinary user's is its porter's, by which it can be made nice."""
    assert "--new-session" in jail_argv(Jail(ROOT, 5), ["/keeper"])
    assert "--new-session" not in jail_argv(Jail(ROOT), ["/keeper"])


def test_a_device_is_there_only_where_it_is_lent() -> None:
    words = jail_argv(Jail(ROOT, devices=((ROOT / "dev/userfaultfd", "/dev/userfaultfd"),)), ["/keeper"])
    at = words.index("/dev/userfaultfd")
    assert words[at - 2 : at] == ["--dev-bind", str(ROOT / "dev/userfaultfd")]
    assert words.count("--dev-bind") == 2
