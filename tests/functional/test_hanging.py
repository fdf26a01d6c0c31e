"""Cards are hung up while QEMU starts: what happens when that cannot be done after all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import HostLacks, NotFound
from insula.host import nft
from insula.host.holder import connect_holder
from insula.networks import naming
from insula.operations.observe import is_alive
from insula.store import names
from insula.store.names import Home

pytestmark = [pytest.mark.root, pytest.mark.limit(180)]


@pytest.fixture
def neighbour(home: Path, tiny: str, name: str) -> Iterator[insula.Machine]:
    """Who is on the network already, so that its rules are there."""
    machine = insula.connect(home).run(tiny, name=f"{name}-neighbour", memory="128M")
    yield machine
    machine.delete(force=True)


@contextlib.contextmanager
def rules_that_no_card_fits_into(home: Path) -> Iterator[None]:
    holder, table = connect_holder(Home(home).fabric / names.HOLDER_SOCKET), f"bridge {naming.TABLE}"
    assert holder is not None
    emptied = [f"flush chain {table} guard", f"flush chain {table} liar", f"delete map {table} spoofed"]
    with holder:
        nft.apply([*emptied, f"add set {table} spoofed {{ type ifname; }}"], holder.spaces)
        try:
            yield
        finally:
            nft.apply([f"delete set {table} spoofed"], holder.spaces)
            insula.connect(home).repair_networks()


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_machine_whose_firewall_is_refused_goes_again(
    home: Path, tiny: str, name: str, neighbour: insula.Machine, cold: bool
) -> None:
    """QEMU runs already when that is known; what is told is the reason, not what QEMU made of it."""
    connection = insula.connect(home)
    with rules_that_no_card_fits_into(home), pytest.raises(HostLacks) as refused:
        connection.run(tiny, name=name, memory="128M", cold=cold)
    assert refused.value.code == "rules_refused"
    assert not is_alive(Home(home).machine(name))
    with contextlib.suppress(NotFound):  # one that was booted stays for its owner
        connection.get(name).delete()
    members = {member.machine for member in connection.network("nat").members}
    assert neighbour.name in members
    assert name not in members
    assert neighbour.exec("nslookup", f"{neighbour.name}.insula").code == 0
