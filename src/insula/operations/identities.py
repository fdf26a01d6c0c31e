"""A new machine's identity, such that no other machine has its ids on this host.

The user a machine's processes run as follows from its UUID (isolation/uids.py), so that nothing need be remembered. Of a thousand
machines two would share one with a chance of 0.1 %, in a container with its few ids almost surely: so a UUID is taken whose
ids are free, and none else is taken before the machine is there to be seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from insula.isolation.uids import JailIds, jail_ids
from insula.model.identity import Identity, new_identity
from insula.store.locks import folder_lock
from insula.store.machines import machine_uuids
from insula.store.names import Home

_TRIES = 1000


@contextlib.contextmanager
def own_identity(home: Home, ids_of: Callable[[str], JailIds] = jail_ids) -> Iterator[Identity]:
    """An identity for a machine that gets its name (`publish_machine`) before this is left; two at once cannot take the same.

    ``ids_of``: which ids a UUID leads to on this host.
    """
    with folder_lock(home.machines):
        yield choose(machine_uuids(home), ids_of)


def is_still_own(home: Home, identity: Identity, ids_of: Callable[[str], JailIds] = jail_ids) -> bool:
    """Whether a machine that was given ``identity`` a while ago can get its name now, the folder of machines being locked."""
    ids = ids_of(identity.uuid).machine
    return ids is None or all(ids_of(other).machine != ids for other in machine_uuids(home))


def choose(others: Iterable[str], ids_of: Callable[[str], JailIds]) -> Identity:
    """An identity whose ids none of ``others`` (UUIDs) leads to. When all ids are taken they are shared after all."""
    identity = new_identity()
    if ids_of(identity.uuid).machine is None:  # all are the caller's own
        return identity
    taken = {ids_of(other).machine for other in others}
    for _ in range(_TRIES):
        if ids_of(identity.uuid).machine not in taken:
            break
        identity = new_identity()
    return identity
