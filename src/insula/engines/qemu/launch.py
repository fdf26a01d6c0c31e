"""Starting a machine: sockets and files opened, passt, the jail's words put together, the porter started, `ready` awaited.

    us ── porter (outside, waits) ── enter ── bwrap ── keeper (pid 1 of the jail) ── QEMU

Each step pushes its undo; whatever fails, nothing of the machine is left running and its run folder is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from insula.engines.base import DirectBoot, DiskBoot, LaunchPlan
from insula.engines.qemu.board import (
    FIRMWARE_CODE,
    FIRMWARE_VARIABLES,
    JAIL_INITRD,
    JAIL_KERNEL,
    JAIL_MEMORY,
    build_board,
    nic_slots,
)
from insula.engines.qemu.cmdline import build_argv
from insula.engines.qemu.descriptors import Descriptors, open_for_keeper, open_for_qemu
from insula.engines.qemu.probe import Build, root_plan
from insula.engines.qemu.sizes import largest_file
from insula.errors import ChildFailed, DamagedRecord, HostLacks, InsulaError, MachineEnded
from insula.host.files import explain_os_error, remove_tree, write_atomic
from insula.host.native import native_path
from insula.host.process import find_program, require_program, run
from insula.isolation.bare import Way, bare_argv, find_way, note_way
from insula.isolation.filters import open_filter
from insula.isolation.jail import Jail, jail_argv
from insula.isolation.roots import KEEPER_INSIDE, PROBE_INSIDE, jail_root
from insula.isolation.uids import jail_ids
from insula.model.text import clean
from insula.resources.groups import group_words
from insula.store import names

_READY: Final = 60.0  # seconds the porter waits for the keeper; it takes a tenth of one unless the host is very busy
PATIENCE: Final = 75.0  # and we for the porter
_ENDED: Final = 15.0
_LATE: Final = "not ready within"  # the porter's words
_LONGEST_LINE: Final = 16384
_UNJAILED_HINT: Final = "run: insula doctor; to run it without what this host cannot have of its jail, give --insecure"
TRACKING: Final = Path("/dev/userfaultfd")


class Instead(msgspec.Struct, frozen=True):
    """The probe, to be run in QEMU's place with all that QEMU would be handed, and its words."""

    program: Path
    words: tuple[str, ...]


def launch(plan: LaunchPlan, build: Build, *, tracks: bool = False, instead: Instead | None = None) -> None:
    """Start ``plan`` on ``build``; on return QEMU answers its monitor and the keeper serves its socket. ``tracks``: QEMU may use
    the host's userfaultfd, if there is one. ``instead``: what is run in QEMU's place.

    Raises HostLacks (a program, memory or disk space is missing, the jail was refused), DamagedRecord (a file of the
    machine is missing), MachineEnded (``failed_to_start``: QEMU ended at once; its last words are in the message).
    """
    require_program("setsid")
    if not plan.insecure and find_program("bwrap") is None:
        raise HostLacks("the jail cannot be made: bubblewrap is not installed", code="jail_refused", hint=_UNJAILED_HINT)
    _prepare_firmware(plan)
    keeper = native_path("insula-keeper")
    root = jail_root(root_plan(build, keeper, instead.program if instead else None))
    ids = jail_ids(plan.uuid)
    way = find_way(root, ids.machine, keeper) if plan.insecure else None
    with _run_folder(plan.run_folder), Descriptors() as descriptors, ExitStack() as watch, ExitStack() as undo:
        with _file_errors(plan.run_folder):
            open_for_keeper(descriptors, plan)
            jail, shown, places = _walls(plan, Jail(root, ids.machine), way, descriptors)
            board = build_board(plan, places)
            open_for_qemu(descriptors, plan, board)
            if tracks and way is None:
                jail, shown = _with_tracking(jail, shown, plan.run_folder)
            if plan.group:
                (plan.run_folder / names.GROUP).write_text(plan.group)
        helpers = _networks(plan, descriptors, ids.network, watch)
        tpm = _tpm(plan, descriptors, ids.tpm, watch)
        undo.callback(_end, plan)
        undo.callback(descriptors.close)  # before it: while we hold the listening socket ourselves, connecting proves nothing
        with tpm:
            argv = [PROBE_INSIDE, *instead.words] if instead else build_argv(board, descriptors.qemu, str(build.binary))
            _start(plan, Walls(jail, way, keeper), [str(keeper), "porter", *shown], argv, descriptors)
        _check_helpers(helpers, ids.network)
        if plan.load is not None:
            if plan.load.state is not None:
                from insula.engines.qemu.migrate import load

                load(plan.run_folder / names.QMP_SOCKET, plan.load.state)
            _keep_base(plan.run_folder, plan.load.memory)
        undo.pop_all()


def _keep_base(run: Path, memory: Path | None) -> None:
    """Keep the file that the machine has mapped, for as long as it runs: while little has changed, a state of it is that file and
    the changes. Where there can be no link, its memory is written whole."""
    if memory is not None:
        with contextlib.suppress(OSError):
            os.link(memory, run / names.MEMORY, follow_symlinks=False)


class Walls(msgspec.Struct, frozen=True):
    """What is to stand around a machine: its jail, or as much of one as there is by this ``way``."""

    jail: Jail
    way: Way | None
    keeper: Path

    def argv(self, inner: Sequence[str]) -> list[str]:
        """The words that start the keeper's ``inner`` half, with its words, behind them."""
        if self.way is None:
            return jail_argv(self.jail, [KEEPER_INSIDE, *inner])
        inside = f"{self.jail.root}{KEEPER_INSIDE}" if self.way is Way.NONE else KEEPER_INSIDE
        return bare_argv(self.way, self.jail, self.keeper, [inside, *inner])


def _walls(plan: LaunchPlan, jail: Jail, way: Way | None, descriptors: Descriptors) -> tuple[Jail, list[str], dict[str, str]]:
    """The jail with the files it is shown (kernel and initrd, a memory file), what the porter must do for that, and where they
    are if not where a jail has them.

    With a user of its own the jail cannot walk to them: the porter shows them. Everybody may read a kernel and an initrd, as all
    layers; a memory file is let read by its group. What has no root of its own is handed them open.
    """
    shown: list[tuple[Path, str]] = []
    if isinstance(plan.boot, DirectBoot):
        files = ((plan.boot.kernel, JAIL_KERNEL), (plan.boot.initrd, JAIL_INITRD))
        shown = [(file, place) for file, place in files if file is not None]
    memory = plan.load.memory if plan.load is not None else None
    if memory is not None:
        shown.append((memory, JAIL_MEMORY))
    owners = {place: file.stat().st_gid for file, place in shown}  # FileNotFoundError tells of a file that is gone
    if jail.uid is not None and memory is not None:
        jail = msgspec.structs.replace(jail, groups=(owners[JAIL_MEMORY],))
    if way is not None:
        note_way(plan.run_folder, way)
    if way is Way.NONE:
        descriptors.qemu |= {place: os.open(file, os.O_RDONLY | os.O_CLOEXEC) for file, place in shown}
        return jail, [], {place: f"/proc/self/fd/{descriptors.qemu[place]}" for _, place in shown}
    if jail.uid is None:
        return msgspec.structs.replace(jail, shown=tuple(shown)), [], {}
    return jail, [word for file, place in shown for word in ("--show", str(file), f"{jail.root}{place}")], {}


def _with_tracking(jail: Jail, shown: list[str], run: Path) -> tuple[Jail, list[str]]:
    """The same with /dev/userfaultfd. It is root's alone, as a rule: a machine with a user of its own gets a node of its own."""
    try:
        device = TRACKING.stat().st_rdev
        if jail.uid is None:
            usable = os.access(TRACKING, os.R_OK | os.W_OK)
            return (msgspec.structs.replace(jail, devices=((TRACKING, str(TRACKING)),)) if usable else jail), shown
        node, place = run / TRACKING.name, Path(f"{jail.root}{TRACKING}")
        os.mknod(node, stat.S_IFCHR | 0o600, device)
        os.chown(node, jail.uid, jail.uid)
    except OSError:
        return jail, shown
    return msgspec.structs.replace(jail, devices=((place, str(TRACKING)),)), [*shown, "--show", str(node), str(place)]


def _prepare_firmware(plan: LaunchPlan) -> None:
    """UEFI keeps its variables in a file of the machine, which is empty at its first start."""
    if not isinstance(plan.boot, DiskBoot) or plan.boot.variables is None:
        return
    if not Path(FIRMWARE_CODE).exists() or not Path(FIRMWARE_VARIABLES).exists():
        raise HostLacks("the UEFI firmware is not installed", code="firmware_missing", hint="run: apt-get install ovmf")
    if not plan.boot.variables.exists():
        plan.boot.variables.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(plan.boot.variables, Path(FIRMWARE_VARIABLES).read_bytes())


@contextlib.contextmanager
def _run_folder(run_folder: Path) -> Iterator[None]:
    """A fresh run folder, gone again when the start fails."""
    remove_tree(run_folder)
    run_folder.mkdir(mode=0o700)
    try:
        yield
    except BaseException:
        remove_tree(run_folder)
        raise


@contextlib.contextmanager
def _file_errors(run_folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as cause:
        raise DamagedRecord(f"{cause.filename} is missing", hint="somebody removed a disk or kernel by hand") from cause
    except OSError as cause:
        raise explain_os_error(cause, run_folder) from cause


def _networks(plan: LaunchPlan, descriptors: Descriptors, uid: int | None, watch: ExitStack) -> list[socket.socket]:
    """Start a helper per network card that has no tap. Returns sockets to see by whether it lives: it ends with its ends."""
    from insula.networks.passt import start_passt

    ends = []
    for slot, nic in zip(nic_slots(plan), plan.nics, strict=True):
        if nic.tap is not None:
            descriptors.qemu[f"net{slot}"] = os.dup(nic.tap)
            continue
        end = start_passt(uid, plan.entrances)
        ends.append(watch.enter_context(end.dup()))
        descriptors.qemu[f"net{slot}"] = end.detach()
    return ends


def _tpm(
    plan: LaunchPlan, descriptors: Descriptors, uid: int | None, watch: ExitStack
) -> contextlib.AbstractContextManager[None]:
    """Start the machine's TPM, if it has one. Within what is returned, an error that comes of its end tells of that."""
    if plan.tpm is None:
        return contextlib.nullcontext()
    from insula.isolation.tpm import start_tpm

    with _file_errors(plan.run_folder):
        end, descriptors.qemu["tpm-lifeline"] = start_tpm(plan.tpm, uid, plan.entrances)
    watched = watch.enter_context(end.dup())
    descriptors.qemu["tpm"] = end.detach()
    return _tpm_errors(watched, plan.tpm, uid)


@contextlib.contextmanager
def _tpm_errors(end: socket.socket, folder: Path, uid: int | None) -> Iterator[None]:
    from insula.isolation.tpm import blames_state, explain_end, has_ended

    try:
        yield
    except InsulaError as cause:
        if blames_state(cause) or has_ended(end):
            raise explain_end(cause, folder, uid) from cause
        raise


def _check_helpers(ends: list[socket.socket], uid: int | None) -> None:
    from insula.networks.passt import explain_end, has_ended

    for end in ends:
        if has_ended(end):
            raise explain_end(uid)


def _end(plan: LaunchPlan) -> None:
    """Undo a start: end whatever serves the keeper's socket, and what was started but serves nobody yet."""
    from insula.guest.keeper import quit_machine
    from insula.guest.link import open_link
    from insula.isolation.inhabitants import evict

    with contextlib.suppress(InsulaError, OSError), open_link(plan.run_folder) as link:
        quit_machine(link, "kill", timeout=_ENDED)
    if plan.run == names.RUN:  # else the machine may have another QEMU, which is none of our business
        evict(plan.folder, plan.uuid, _ENDED)


def _start(plan: LaunchPlan, walls: Walls, porter: list[str], qemu: list[str], descriptors: Descriptors) -> None:
    """Start the porter and wait for its line."""
    listening, speaking = os.pipe()
    descriptors.keeper["ready"] = speaking
    inner = ["inner"]
    for name, number in descriptors.keeper.items():
        inner += [f"--{name}", str(number)]
    inner += ["--keep", ",".join(str(number) for number in descriptors.qemu.values()), "--", *qemu]
    words = [*porter, *group_words(plan.entrances), *porter_words(speaking, plan.on_end)]
    calls = open_filter("machine")
    try:
        passed = [*descriptors.numbers(), *plan.entrances, *([] if calls is None else [calls])]
        walls = msgspec.structs.replace(walls, jail=msgspec.structs.replace(walls.jail, calls=calls, largest=largest_file(plan)))
        run([*words, "--", *walls.argv(inner)], pass_fds=passed, timeout=PATIENCE)
        descriptors.close()  # so that the pipe ends when the last who could speak on it has ended
        _hear(listening)
    except ChildFailed as cause:
        raise HostLacks(f"cannot start the keeper: {cause.message}", code="keeper_failed", hint=cause.hint) from cause
    finally:
        os.close(listening)
        if calls is not None:
            os.close(calls)


def porter_words(speaking: int, on_end: tuple[str, ...]) -> list[str]:
    """Pure: what the porter is told. Its patience ends before ours, so that it is who says that it took too long."""
    words = ["--ready-fd", str(speaking), "--patience", f"{_READY:g}"]
    return [*words, "--ended-argc", str(len(on_end)), *on_end] if on_end else words


def _hear(listening: int) -> None:
    """Wait for `ready`. Raises what `failed: …` means."""
    deadline = time.monotonic() + PATIENCE
    untrusted_line = b""
    poller = select.poll()
    poller.register(listening, select.POLLIN)
    while b"\n" not in untrusted_line and len(untrusted_line) < _LONGEST_LINE:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise explain_failure(f"{_LATE} {PATIENCE:g} s")
        piece = os.read(listening, 4096)
        if not piece:
            break
        untrusted_line += piece
    words = clean(untrusted_line[:_LONGEST_LINE].strip())
    if not words.startswith("ready"):
        raise explain_failure(words.removeprefix("failed:").strip())


def explain_failure(words: str) -> InsulaError:
    """Pure: the error for what the keeper, QEMU or bubblewrap said before it ended."""
    if "Cannot allocate memory" in words or "cannot set up guest memory" in words:
        return HostLacks(f"not enough memory on this host: {words}", code="no_memory", hint="ask for less with --memory")
    if not words:
        return HostLacks("the keeper ended at once: it said nothing", code="keeper_failed", hint="try again, or: insula doctor")
    if words.startswith(_LATE):
        return MachineEnded(f"QEMU was {words}", code="failed_to_start", hint="is the host overloaded?")
    if words.startswith("QEMU"):
        return MachineEnded(words, code="failed_to_start", hint="this is QEMU's own message; 'insula doctor' checks the host")
    if "Creating new namespace failed" in words or "No permissions to creat" in words:  # as bubblewrap spells it
        words = f"this host lets nobody like us make user namespaces, of which the jail is made ({words})"
    return HostLacks(f"the jail was refused: {words}", code="jail_refused", hint=_UNJAILED_HINT)
