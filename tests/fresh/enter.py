"""``python enter.py ROOT USER WORD...``: run a program as a user of the tree ROOT, as if that system had booted.

Run as root, inside new mount and pid namespaces (``system.py`` does that); all mounts go with them. Not a chroot: the
kernel refuses user namespaces inside one. Not bubblewrap: it forbids set-user-ID programs, and newuidmap is one.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "kvm", "userfaultfd")
# What ties a system to the network it is in; a real one has these from its installer or its DHCP client.
_CERTIFICATES = "/etc/host-certificates.crt"
_OF_THE_HOST = {
    "/etc/resolv.conf": "/etc/resolv.conf",
    "/etc/pip.conf": "/etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt": _CERTIFICATES,
}
_MNT_DETACH = 2


def main(root: Path, user: str, words: list[str]) -> None:
    _mount("--bind", root, root)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("--rbind", "/sys", root / "sys")
    for name, mode in (("dev", "755"), ("run", "755"), ("tmp", "1777")):
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", root / name)
    _share_switches(root / "run/insula")
    _fill_dev(root / "dev")
    for source, target in _OF_THE_HOST.items():
        _bind_readonly(Path(source), root / target.lstrip("/"))
    entry = _entry(root, user)
    _pivot(root)
    child = os.fork()
    if child == 0:
        _become(entry, words)
    sys.exit(_wait_as_init(child))


def _wait_as_init(child: int) -> int:
    """Reap orphans, as the first process of a system must, until ``child`` ends; its exit status."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _fill_dev(dev: Path) -> None:
    for name in ("net", "pts", "shm"):
        (dev / name).mkdir()
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", dev / "pts")
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", dev / "shm")
    for name, target in {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        (dev / name).symlink_to(target)
    os.mknod(dev / "net/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))  # for everybody, as udev's rules have it
    (dev / "net/tun").chmod(0o666)
    for name in _DEVICES:
        if Path("/dev", name).exists():
            (dev / name).touch()
            _mount("--bind", Path("/dev", name), dev / name)


def _share_switches(place: Path) -> None:
    """It is on this host's network, whose switches have one record."""
    host = Path("/run/insula")
    host.mkdir(mode=0o700, exist_ok=True)
    place.mkdir()
    _mount("--bind", host, place)


def _bind_readonly(source: Path, target: Path) -> None:
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()
    _mount("--bind", "-o", "ro", source.resolve(), target)


def _entry(root: Path, user: str) -> list[str]:
    """The user's line in the tree's passwd(5)."""
    lines = (line.split(":") for line in (root / "etc/passwd").read_text().splitlines())
    return next(line for line in lines if line[0] == user)


def _pivot(root: Path) -> None:
    """Make ``root`` the namespace's root. The calls are made from here: the new tree may not even have umount."""
    libc = ctypes.CDLL(None, use_errno=True)
    old = root / ".old"
    old.mkdir(exist_ok=True)
    for call, arguments in ((libc.pivot_root, (bytes(root), bytes(old))), (libc.umount2, (b"/.old", _MNT_DETACH))):
        if call(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), call.__name__)
        os.chdir("/")
    os.rmdir("/.old")


def _become(entry: list[str], words: list[str]) -> None:
    name, _, uid, gid, _, home, _ = entry
    os.initgroups(name, int(gid))
    os.setgid(int(gid))
    os.setuid(int(uid))
    os.chdir(home)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "LANG": "C.UTF-8",
    }
    if os.path.exists(_CERTIFICATES):
        environment |= {"PIP_CERT": _CERTIFICATES, "SSL_CERT_FILE": _CERTIFICATES}
    os.execvpe(words[0], words, environment)


def _mount(*words: str | os.PathLike[str]) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:])
