"""What a build tells, and what it makes of its programs' last words."""

from __future__ import annotations

import pytest

from insula.errors import Interrupted
from insula.images.packages import AptMeter
from insula.images.progress import Progress, Watcher
from insula.images.room import failure


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
        (["E: Unable to locate package nonsense", "E: mmdebstrap failed to run"], "build_failed"),
        ([], "build_failed"),
    ],
)
def test_last_words_become_errors_a_user_can_act_on(lines: list[str], code: str) -> None:
    error = failure("getting packages", ["mmdebstrap", "a b"], 25, lines)
    assert error.code == code
    assert error.hint


def test_the_telling_line_is_chosen() -> None:
    error = failure("getting packages", ["x"], 25, ["E: Unable to locate package nonsense", "bye", "E: mmdebstrap failed to run"])
    assert error.message == "getting packages failed with status 25: E: Unable to locate package nonsense"
