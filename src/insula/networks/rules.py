"""All rules of the fabric, as transactions for ``nft -f -``. Pure: the same wish gives the same rules.

Each function gives one whole transaction's commands. All but `everything` and `host_rules` may be loaded again over what is
there: what they name is as wanted afterwards, what they do not name stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from insula.model.network import NetworkSpec
from insula.networks import flows, guard, naming, peers, policy
from insula.networks.guard import BRIDGE
from insula.networks.plan import Attached, Uplink
from insula.networks.policy import INET
from insula.networks.terms import ACCEPT, DROP, FLUSH_CHAIN, MASQUERADE, Table, ct, either, gathered, link, match, meta, payload

__all__ = [
    "base_rules",
    "drop_host_rules",
    "drop_network_rules",
    "drop_nic_rules",
    "everything",
    "host_rules",
    "network_rules",
    "nic_rules",
]


def base_rules(uplink: Uplink | None, host_addresses: Iterable[str] = ()) -> list[str]:
    """In the fabric, once; again whenever the host's addresses changed.

    ``uplink`` is None where pasta is the uplink. ``host_addresses`` are all addresses of the host itself: machines reach none.
    """
    return [BRIDGE.add(), INET.add(), *flows.base(), *guard.base(), *peers.base(), *policy.base(uplink, host_addresses)]


def network_rules(network: str, spec: NetworkSpec) -> list[str]:
    """In the fabric, before the first card of a network: which addresses are its gateway's, and whether it has an outside."""
    return [*guard.network(network, spec), *policy.network(network, spec)]


def drop_network_rules(network: str, spec: NetworkSpec) -> list[str]:
    """The opposite of `network_rules`, whether that was loaded or not."""
    return [*BRIDGE.release(guard.network_holds(network, spec)), *INET.release(policy.network_holds(network, spec))]


def nic_rules(attached: Attached, former: Attached | None = None) -> list[str]:
    """In the fabric, before a card's tap is up, and whenever its firewall or addresses changed.

    ``former`` is what was loaded for the card before, if anything was: what is wanted no more of it goes, in the same instant.
    """
    commands = [*guard.nic(attached), *peers.nic(attached), *policy.nic(attached)]
    if former is None or former == attached:
        return commands
    commands += BRIDGE.release(guard.holds(former).without(guard.holds(attached)))
    commands += BRIDGE.release(peers.holds(former).without(peers.holds(attached)))
    return commands + INET.release(policy.holds(former).without(policy.holds(attached)))


def drop_nic_rules(attached: Attached) -> list[str]:
    """Remove all that `nic_rules` loaded for ``attached``, whether it is there or not."""
    released = [*BRIDGE.release(guard.holds(attached)), *BRIDGE.release(peers.holds(attached))]
    return [*released, *INET.release(policy.holds(attached))]


def everything(
    uplink: Uplink | None,
    host_addresses: Iterable[str],
    networks: Mapping[str, NetworkSpec],
    cards: Iterable[Attached],
) -> list[str]:
    """In the fabric: all rules anew, in one transaction, whatever was there. What machines of a network were saying to each other
    goes on; the router's counters begin at zero.
    """
    commands: list[str] = []
    for network, spec in networks.items():
        commands += network_rules(network, spec)
    for attached in cards:
        commands += nic_rules(attached)
    # These are emptied, not deleted: with them would go what their sets know of flows.
    emptied = [BRIDGE.add(), BRIDGE.empty(), flows.TABLE.add(), flows.TABLE.empty(), INET.add(), INET.delete()]
    wanted = [*base_rules(uplink, host_addresses), *guard.cleared(), *peers.cleared(), *gathered(commands)]
    return emptied + [command for command in wanted if not command.startswith(FLUSH_CHAIN)]


def host_rules(home: str, networks: Iterable[NetworkSpec], uplink: Uplink | None = None) -> list[str]:
    """In the host's own namespace, as root: our one table, replaced as a whole.

    What comes out of the fabric may go out into the world hidden behind the host's address, and not to the host itself;
    into the fabric come answers, and what the host itself sends. The host forgets what is silent as soon as the fabric does.
    """
    table, ours = Table("inet", naming.host_table(home)), link(naming.host_link(home))
    inside, into = match(meta("iifname"), ours), match(meta("oifname"), ours)
    answer = [match(ct("state"), "established,related"), match(ct("direction"), "reply"), ACCEPT]
    neighbours = match(payload("icmpv6", "type"), either("nd-neighbor-solicit", "nd-neighbor-advert"))
    away = match(meta("oifname"), ours, "!=")
    subnets = [
        (each, family) for spec in networks if spec.mode == "nat" for each, family in ((spec.ipv4, "ip"), (spec.ipv6, "ip6"))
    ]
    if uplink is not None:  # what name servers ask on their own account
        subnets += [(uplink.inner4, "ip"), (uplink.inner6, "ip6")]
    hidden = [[match(payload(family, "saddr"), each), away, MASQUERADE] for each, family in subnets if each]
    return [
        table.add(),
        table.delete(),
        table.add(),
        *flows.patience("inet", naming.host_table(home)),
        *table.base_chain("begun", "filter", "prerouting", -150),
        *table.rules("begun", [[flows.KNOWN], *[[rule] for rule in flows.remembered(inside)]]),
        *table.base_chain("input", "filter", "input", -10),
        *table.rules("input", [[inside, *answer], [inside, neighbours, ACCEPT], [inside, DROP]]),
        *table.base_chain("forward", "filter", "forward", -10),
        *table.rules("forward", [[into, *answer], [into, DROP]]),
        *table.base_chain("outside", "nat", "postrouting", 100),
        *table.rules("outside", hidden),
    ]


def drop_host_rules(home: str) -> list[str]:
    """Remove `host_rules`, whether they are there or not."""
    table = Table("inet", naming.host_table(home))
    return [table.add(), table.delete()]
