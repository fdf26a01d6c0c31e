"""Networks: what is said when they cannot be deleted."""

from __future__ import annotations

import pytest

from insula.operations.network import _in_use


@pytest.mark.parametrize(
    ("users", "message", "hint"),
    [
        (["web"], "lab is in use by web", "take it off first: insula network detach lab web"),
        (
            ["db", "web"],
            "lab is in use by db, web",
            "take them off first: insula network detach lab db && insula network detach lab web",
        ),
    ],
)
def test_everybody_who_must_leave_a_network_is_named(users: list[str], message: str, hint: str) -> None:
    error = _in_use("lab", users)
    assert (error.code, error.message, error.hint) == ("network_in_use", message, hint)


def test_of_many_on_a_network_the_first_are_named() -> None:
    error = _in_use("lab", [f"m{number}" for number in range(1, 9)])
    assert error.message == "lab is in use by m1, m2, m3, m4, m5 and 3 more"
    assert (error.hint or "").endswith("insula network detach lab m5 … (all of them: insula network show lab)")
