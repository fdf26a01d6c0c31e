"""A fork whose QEMU starts while the state it will go on from is still being taken, because starting takes as long as taking.

    memory file has its size → folder, links, heads, identity, QEMU started on them | (parent: the instant, layers for good)
    → devices loaded → the folder gets its name

It maps a file that is still written to, and opens a disk that is still written to, as a QEMU does to which a machine is migrated:
it reads neither before it loads. Until then its folder has no name, and whoever finds it without an owner ends and removes it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
from msgspec.structs import replace

from insula.errors import InsulaError, MachineEnded
from insula.host.files import fleeting
from insula.host.together import Beside, short_turns
from insula.model.identity import Identity
from insula.operations import journal
from insula.operations.awaken import loaded
from insula.operations.cards import like_before, slots_of, with_cards, with_inner
from insula.operations.context import Context
from insula.operations.identities import is_still_own, own_identity
from insula.operations.lease import Lease, take_lease
from insula.operations.origin import Origin, Wishes, as_wished, fill_fork, link_memory
from insula.operations.spare import end_nameless
from insula.store import names
from insula.store.locks import folder_lock
from insula.store.machines import MachineRecord, new_machine_folder, publish_machine, write_machine

if TYPE_CHECKING:
    from insula.operations.hanging import Hanging
    from insula.store.snapshots import SnapshotRecord


class Ahead:
    """The fork ``name`` of the machine in the folder ``machine``, if it can be made ahead. A context manager: what has no name at
    its end is gone, and the lock of what has one is ours until then."""

    def __init__(self, context: Context, machine: Path, name: str, *, ephemeral: bool) -> None:
        self._context, self._machine, self._name, self._ephemeral = context, machine, name, ephemeral
        self._place, self._held, self._saving = (contextlib.ExitStack() for _ in range(3))
        self._origin: Origin | None = None
        self._record: MachineRecord | None = None
        self._staged: Path | None = None
        self._made = False
        self._preparing, self._starting = Beside(self._prepare), Beside(self._start)
        self.coming: list[Hanging] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.drop()
        finally:
            self._place.close()

    def prepare(self, place: Path, state: SnapshotRecord) -> None:
        """See `Follower`. Before memory is written: behind all that, a disk takes long to make sure of anything. Variables of
        firmware and a TPM are there at the instant alone."""
        if state.spec.firmware == "bios" and not state.spec.tpm:
            self._origin = Origin(self._machine, place, state)
            self._preparing.begin()

    def begin(self, state: SnapshotRecord) -> None:
        """See `Follower`. With one CPU it would only be in the way of the parent."""
        if self._origin is not None and self._origin.record.memory is None and len(os.sched_getaffinity(0)) > 1:
            self._origin = msgspec.structs.replace(self._origin, record=state)
            self._saving.enter_context(short_turns())
            self._starting.begin()

    def _prepare(self) -> None:
        origin, home = self._origin, self._context.home
        assert origin is not None
        with fleeting(self._ephemeral):
            self._staged = self._place.enter_context(new_machine_folder(home, "fork"))
            record = fill_fork(self._staged, origin, ephemeral=self._ephemeral)
            with own_identity(home) as identity:
                self._record = write_newborn(self._context, self._staged, origin, record, identity)

    def _start(self) -> None:
        self._preparing.wait()
        origin, staged, record = self._origin, self._staged, self._record
        assert origin is not None
        assert staged is not None
        assert record is not None
        assert origin.record.memory is not None
        how = loaded(
            self._context, staged, record, origin.folder, origin.record.memory, later=self.coming, name=self._name, ahead=True
        )
        with fleeting(self._ephemeral):
            self._held.enter_context(how)
        self._made = True

    def finish(self, origin: Origin) -> tuple[Path, Lease | None] | None:
        """Its folder, which has its name now, and if ``origin`` is loaded already, its guest standing, the lease it lives by;
        else that is to be loaded from there. None when nothing was made ahead, or for something else than became of it.

        Raises HostLacks, AlreadyExists.
        """
        self._saving.close()
        self._preparing.join()
        self._starting.join()
        staged, record = self._staged, self._record
        if staged is None or record is None or not self._is_of(origin, record):
            self.drop()
            return None
        lease = None
        if self._made:
            try:
                self._context.engine.load(staged / names.RUN, origin.folder / names.STATE, origin.folder / names.MEMORY)
                lease = take_lease(staged)
            except MachineEnded:  # its QEMU died meanwhile: as if there had been none
                self.drop()
                return None
            self._held.close()
        else:
            link_memory(staged, origin)
        try:
            folder = self._publish(staged, record)
        except BaseException:
            if lease is not None:
                lease.close()
            raise
        if folder is None:
            if lease is not None:
                lease.close()
            self.drop()
            return None
        self._staged = None
        return folder, lease

    def _publish(self, staged: Path, record: MachineRecord) -> Path | None:
        """Give it its name; None when another machine was given the same ids meanwhile."""
        with folder_lock(self._context.home.machines):
            if not is_still_own(self._context.home, record.identity):
                return None
            return publish_machine(self._context.home, staged, self._name)

    def _is_of(self, origin: Origin, record: MachineRecord) -> bool:
        """Whether what was begun is what became of it: memory may be taken in another way after all, and the guest may have
        let go of some."""
        begun, became = self._origin, origin.record
        if begun is None or begun.folder != origin.folder or record.shape != became.shape or became.memory is None:
            return False
        if begun.record.memory is None:  # only its folder was prepared
            return True
        return self._made and replace(begun.record.memory, pause=became.memory.pause) == became.memory

    def drop(self) -> None:
        """End and remove it, unless it has its name."""
        self._saving.close()
        self._preparing.join()
        self._starting.join()
        for card in self.coming:
            card.join()
        if self._staged is not None:
            end_nameless(self._context, self._staged)
            self._staged = None
        with contextlib.suppress(InsulaError):  # its keeper is gone
            self._held.close()


def write_newborn(
    context: Context, staged: Path, origin: Origin, record: MachineRecord, identity: Identity, wishes: Wishes | None = None
) -> MachineRecord:
    """Write the journal and the record of a new machine that is to go on from ``origin``; ``record`` is what `fill_fork` says."""
    mine = as_wished(replace(record, id=identity.uuid, identity=identity), wishes)
    mine = with_cards(context, mine, slots_of(origin.record), wishes.addresses if wishes else ())
    mine = like_before(mine, origin.record)
    mine = mine if mine.boot.agent else with_inner(context, mine, origin.record)
    with fleeting():  # after a power cut it is enough that it is there; `publish_machine` makes sure of that
        journal.note(staged, "fork", "load its state")
    write_machine(staged, mine)
    return mine
