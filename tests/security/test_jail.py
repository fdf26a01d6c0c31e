"""The jail is a jail because these attempts fail in it: a program of the attacker's choice (perl) runs where QEMU would."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.host.process import run
from insula.isolation.filters import open_filter
from insula.isolation.jail import Jail, jail_argv
from insula.isolation.roots import RootPlan, jail_root
from insula.isolation.uids import jail_ids

PERL = Path("/usr/bin/perl")
LIBRARIES = tuple(path for path in Path("/usr/lib").glob("*/perl-base") if path.is_dir())

pytestmark = pytest.mark.skipif(not (PERL.exists() and LIBRARIES), reason="needs perl-base")

ATTEMPTS = r"""
use Socket; my %r;
sub try { my ($name, $got) = @_; $r{$name} = $got ? "OPEN" : "$!"; }
for my $path ("/", "/usr", "/usr/bin", "/dev", "/boot", "/tmp", "/proc", "/sys", "/var/tmp") {
    try("write $path", open(my $f, ">", "$path/x") || mkdir("$path/y")); }
for my $path ("/etc/passwd", "/etc/shadow", "/proc/1/status", "/proc/self/exe", "/sys/kernel", "/dev/kvm", "/dev/net/tun",
              "/dev/vda", "/home", "/root", "/run") { try("see $path", -e $path); }
my ($nothing, $rootdir, $tmpfs, $usr, $word) = ("none", "/", "tmpfs", "/usr", "x");         # syscall wants variables
my $limits = pack("QQ", 1 << 20, 1 << 20);
try("make the root writable", syscall(165, $nothing, $rootdir, 0, 32 | 4096, 0) == 0);  # mount: remount, bind
try("mount tmpfs", syscall(165, $tmpfs, $usr, $tmpfs, 0, 0) == 0);
try("be root", syscall(105, 0) == 0);                                                   # setuid
try("host name", syscall(170, $word, 1) == 0);                                          # sethostname
try("signal a process of the host", kill(0, $ENV_PID));
socket(my $tcp, AF_INET, SOCK_STREAM, 0);
try("reach the host's loopback", connect($tcp, pack_sockaddr_in($PORT, inet_aton("127.0.0.1"))));
socket(my $raw, AF_INET, SOCK_RAW, 1) and $r{"raw socket"} = "OPEN";
socket(my $ext, AF_INET, SOCK_STREAM, 0); try("reach the network", connect($ext, pack_sockaddr_in(80, inet_aton("192.0.2.1"))));
socket(my $un, AF_UNIX, SOCK_STREAM, 0); try("reach an abstract socket of the host", connect($un, pack("S a*", 1, "\0$NAME")));
for my $family (16, 17, 38, 40, 44) {                                                    # netlink, packet, alg, vsock, xdp
    try("socket of family $family", socket(my $s, $family, SOCK_RAW, 0) || socket($s, $family, SOCK_DGRAM, 0) ||
        socket($s, $family, SOCK_STREAM, 0) || socket($s, $family, SOCK_SEQPACKET, 0)); }
my $attribute = pack("LLQ", 1, 128, 0) . "\0" x 112; my $ring = "\0" x 120;
try("io_uring", syscall(425, 4, $ring) >= 0);
try("userfaultfd", syscall(323, 1) >= 0);
try("perf events", syscall(298, $attribute, 0, -1, -1, 0) >= 0);
try("bpf", syscall(321, 0, $attribute, 72) >= 0);
try("a keyring", syscall(250, 1, 0) >= 0);                                                # keyctl: join session keyring
try("be traced", syscall(101, 0, 0, 0, 0) >= 0);                                          # ptrace: by the parent
try("add a key", syscall(248, $word, $word, $word, 1, -1) >= 0);
try("personality", syscall(135, 0xffffffff) >= 0);
try("open by handle", syscall(304, -100, $ring, 0) >= 0);
try("another namespace's clock", syscall(227, 0, $limits) >= 0);                          # clock_settime
try("a call of tomorrow", syscall(500, 0) >= 0);
try("raise limits", syscall(160, 8, $limits) == 0);                                       # setrlimit: memlock
# Last, because where they succeed the rest would be tried elsewhere.
try("new user namespace", syscall(272, 0x10000000) == 0);                               # unshare
try("new network namespace", syscall(272, 0x40000000) == 0);
try("chroot", chroot("/usr"));
$r{pid} = $$; $r{environment} = join(",", sort keys %ENV);
open(my $d, "/dev/fd") and $r{"see /dev/fd"} = "OPEN";
print join("", map { "$_\t$r{$_}\n" } sort keys %r);
"""

HARMLESS = {"pid": "1", "environment": "PWD"}


@pytest.fixture
def listeners() -> Iterator[tuple[int, str]]:
    """Things on the host that must not be reached: a TCP port on its loopback, and an abstract socket."""
    tcp = socket.create_server(("127.0.0.1", 0))
    name = f"insula-test-{os.getpid()}"
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0" + name)
    abstract.listen()
    yield tcp.getsockname()[1], name
    tcp.close()
    abstract.close()


def test_nothing_gets_out(tmp_path: Path, listeners: tuple[int, str]) -> None:
    folder = Path("/var/cache/insula") if os.geteuid() == 0 else tmp_path
    folder = folder / f"test-{os.getpid()}"
    keeper = tmp_path / "keeper"
    keeper.write_bytes(b"")
    try:
        root = jail_root(RootPlan((PERL,), LIBRARIES, keeper), folder)
        ids = jail_ids("11111111-2222-4333-8444-555555555555")
        port, name = listeners
        script = ATTEMPTS.replace("$PORT", str(port)).replace("$NAME", name).replace("$ENV_PID", str(os.getpid()))
        calls = open_filter("machine")
        held = [] if calls is None else [calls]
        done = run(jail_argv(Jail(root, ids.machine, calls=calls), ["/usr/bin/perl", "-e", script]), timeout=30, pass_fds=held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = dict(line.split("\t") for line in done.text.splitlines())
    assert len(results) > 45, done.text
    escaped = {what: how for what, how in results.items() if how == "OPEN"}
    assert escaped == {}, json.dumps(results, indent=1)
    assert {what: results[what] for what in HARMLESS} == HARMLESS


def test_the_attempts_are_real(listeners: tuple[int, str]) -> None:
    """Outside the jail some of the same attempts succeed, so it is the jail that stops them."""
    port, name = listeners
    script = ATTEMPTS.replace("$PORT", str(port)).replace("$NAME", name).replace("$ENV_PID", str(os.getpid()))
    script = script.replace('open(my $f, ">", "$path/x") || mkdir("$path/y")', "0")
    done = run(["setpriv", "--no-new-privs", "--", *OUTSIDE, str(PERL), "-e", script])
    open_outside = {line.split("\t")[0] for line in done.text.splitlines() if line.endswith("\tOPEN")}
    assert {"see /etc/passwd", "reach the host's loopback", "reach an abstract socket of the host", "be traced"} <= open_outside
    assert {"socket of family 16", "a keyring", "personality"} <= open_outside


# As root the attempts themselves could do harm, so they are made as nobody.
OUTSIDE = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"] if os.geteuid() == 0 else []
