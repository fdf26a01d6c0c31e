"""What a build tells, and what it makes of its programs' last words."""

from __future__ import annotations

import pytest

from insula.errors import ChildFailed, Interrupted
from insula.images.packages import AptMeter
from insula.images.progress import Progress, Watcher
from insula.images.room import failure, is_worth_telling


def test_a_watcher_reports_until_it_is_told_to_stop() -> None:
    seen: list[Progress] = []
    stop = False
    watcher = Watcher(seen.append, lambda: stop)
    watcher.say("getting packages", 0.1, "a line")
    stop = True
    with pytest.raises(Interrupted):
        watcher.say("getting packages", 0.2)
    assert seen == [Progress("getting packages", 0.1, "a line")]


def test_the_meter_follows_apt() -> None:
    meter = AptMeter(0.2, 0.6)
    lines = ["Reading package lists...", "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."]
    lines += [
        "Unpacking a (1) ...",
        "Unpacking b (1) ...",
        "Setting up a (1) ...",
        "Setting up b (1) ...",
        "Setting up extra ...",
    ]
    assert [round(meter(line), 3) for line in lines] == [0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["dd: error writing 'x': No space left on device"], "no_space"),
        (["E: You don't have enough free space in /var/cache/apt/archives/."], "no_space"),
        (["W: Failed to fetch: Temporary failure resolving 'mirror.example'", "E: apt-get failed"], "archive_unreachable"),
        (["W: GPG error: NO_PUBKEY 0123", "E: The repository is not signed."], "archive_untrusted"),
        (["E: Unable to locate package nonsense", "E: mmdebstrap failed to run"], "unknown_package"),
        ([], "build_failed"),
    ],
)
def test_last_words_become_errors_a_user_can_act_on(lines: list[str], code: str) -> None:
    error = failure("getting packages", ["mmdebstrap", "a b"], 25, lines)
    assert error.code == code
    assert error.hint or code == "build_failed"


_APT = "E: apt-get --yes -oDebug::pkgDpkgPm=1 install busybox-static nonsense -oDpkg::Use-Pty=false failed"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["E: Unable to locate package nonsense", "bye", "E: mmdebstrap failed to run"], "Unable to locate package nonsense"),
        (
            ["E: Unable to locate package nonsense", _APT, f"E: apt download failed: {_APT}", "E: mmdebstrap failed to run"],
            "Unable to locate package nonsense",
        ),
        (
            ["dpkg: error processing package nginx (--configure):", "E: Sub-process /usr/bin/dpkg returned an error code (1)"],
            "dpkg: error processing package nginx (--configure):",
        ),
        # A recipe's own command: nothing says "error", and the last words are its own.
        (
            [
                "sh: 1: no-such-command: not found",
                "E: setup failed: E: command failed: /work/hook-1",
                "E: mmdebstrap failed to run",
            ],
            "sh: 1: no-such-command: not found",
        ),
        (["I: running --customize-hook directly: /work/hook-1", "W: hooklistener errored out"], "W: hooklistener errored out"),
    ],
)
def test_the_line_that_says_why_is_the_fact(lines: list[str], message: str) -> None:
    assert failure("getting packages", ["mmdebstrap"], 25, lines).message == f"getting packages failed: {message}"


@pytest.mark.parametrize("line", ["E: Unable to locate package nonsense", "E: Package 'nonsense' has no installation candidate"])
def test_an_unknown_package_is_told_apart(line: str) -> None:
    error = failure("getting packages", ["mmdebstrap"], 25, [line, "E: mmdebstrap failed to run"])
    assert error.code == "unknown_package"
    assert error.hint == "correct the recipe's packages, or its suite"


def test_warnings_about_the_room_are_kept_but_not_told() -> None:
    assert not is_worth_telling("W: Host system does not have a /etc/hostname to copy into the rootfs.")
    assert not is_worth_telling("dpkg: warning: ignoring pre-dependency problem!")
    assert is_worth_telling("I: downloading packages with apt...")
    assert is_worth_telling("E: Unable to locate package nonsense")
    error = failure("getting packages", ["x"], 1, ["W: a warning", "the end"])
    assert isinstance(error, ChildFailed)
    assert "W: a warning" in error.output
