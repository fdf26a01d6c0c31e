"""What this host can do, each fact proved by doing it; and mending what can be mended.

What cost time to prove is kept in ``host/facts-<boot>.json`` until the host boots again or what it rests on changes;
space, packages and the state folder are looked at every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks, InsulaError, UsageError
from insula.host import apparmor, facts, packages
from insula.host.native import native_path
from insula.isolation.jail import LABEL, PROFILES
from insula.model.architectures import debian_architecture
from insula.model.doctor import Fact, FactState, Report
from insula.model.requests import ExamineHost
from insula.model.units import format_size
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.resources.policy import read_policy
from insula.store.names import Home
from insula.store.records import write_record

_SCHEMA: Final = 1


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts of one probe, and what they rest on."""

    rests_on: str
    facts: list[Fact]


class _Notebook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of facts."""

    schema: int
    kept: dict[str, _Kept]


def doctor(context: Context, request: ExamineHost, operation: Operation, confirm: Callable[[str], bool] | None = None) -> Report:
    """Examine this host. ``request.fix``: first install the packages that are missing and build the native parts.

    ``confirm`` is asked before sudo is used; None when nobody can be asked. Raises HostLacks when the packages may not or
    cannot be installed (its hint is the exact command).
    """
    home, fix = context.home, request.fix
    if fix:
        wanted = {packages.Purpose.MACHINE, packages.Purpose.JAIL, packages.Purpose.IMAGE, packages.Purpose.NETWORK}
        ensure_packages(wanted, confirm=confirm, operation=operation)
    found = [facts.state_folder(home.root), *_package_facts(), native_parts(operation)]
    found += qemu_facts(home, operation, fresh=fix)
    found += _kept_facts(home, operation, fresh=fix)
    found.append(apparmor.fact(LABEL, PROFILES))
    found += _forwarding(home)
    found.append(policy_fact(context))
    return Report(found, usable=all(fact.state is not FactState.MISSING for fact in found))


def policy_fact(context: Context) -> Fact:
    """What may be promised to machines, by whose word, and how much of it is."""
    from insula.operations.promises import cpu_stock, disk_stock

    try:
        policy = read_policy(context.home.root)
    except UsageError as refusal:
        return Fact("policy", FactState.MISSING, refusal.message, "nothing is admitted", refusal.hint or "")
    cpus, disk = cpu_stock(context, policy.cpu or 1), disk_stock(context, policy.disk or 1)
    words = [
        f"memory {policy.memory} times",
        f"CPUs {_times(policy.cpu)} ({cpus.promised} of {cpus.there} promised)",
        f"disk {_times(policy.disk)} (disks may grow by {format_size(disk.promised)}, {format_size(disk.there)} are free)",
    ]
    return Fact("policy", FactState.OK, f"promised may be: {', '.join(words)}; by {policy.source}")


def _times(times: int | None) -> str:
    return "as many as are wanted" if times is None else f"{times} times"


def ensure_packages(
    purposes: Collection[packages.Purpose], *, confirm: Callable[[str], bool] | None, operation: Operation
) -> list[packages.Package]:
    """Install the Debian packages that are missing for ``purposes``. Costs nothing worth mentioning when none is.

    Raises HostLacks as ``host.packages.ensure``.
    """
    return packages.ensure(purposes, confirm=confirm, progress=operation.tell)


def _package_facts() -> list[Fact]:
    found = []
    mend = "insula doctor --fix"
    for purpose, state, costs, how in (
        (packages.Purpose.MACHINE, FactState.MISSING, "machines cannot run", mend),
        (packages.Purpose.JAIL, FactState.MISSING, "no jail can be made: a machine runs only with --insecure", mend),
        (packages.Purpose.IMAGE, FactState.LIMITED, "images cannot be built", mend),
        (packages.Purpose.NETWORK, FactState.LIMITED, "no networks among machines; NAT through passt works", mend),
        (packages.Purpose.TPM, FactState.LIMITED, "no machine can have a TPM", "sudo apt-get install swtpm"),
    ):
        name = f"packages for {purpose}"
        absent = packages.missing({purpose})
        if absent:
            names = ", ".join(package.name for package in absent)
            found.append(Fact(name, state, f"missing or too old: {names}", costs, how))
        else:
            found.append(Fact(name, FactState.OK, "all installed"))
    return found


def native_parts(operation: Operation) -> Fact:
    """Are the agent and the keeper built? They are now, if they can be."""
    name = "native parts"
    operation.tell("building the agent and the keeper")
    try:
        places = {native_path(part).parent for part in ("insula-agent", "insula-keeper")}
    except InsulaError as refusal:
        return Fact(name, FactState.MISSING, refusal.message, "machines cannot run", _fix_of(refusal))
    return Fact(name, FactState.OK, f"in {' and '.join(sorted(map(str, places)))}")


def qemu_facts(home: Home, operation: Operation, *, fresh: bool) -> list[Fact]:
    """The QEMU for this host's machines, and what its accelerators did with a real 64-bit guest. The engine keeps notes."""
    # Only here: `doctor` is also imported for its packages, before there is a QEMU.
    from insula.engines.qemu import probe

    operation.tell("trying QEMU and its accelerators")
    try:
        notes = probe.learn(home, debian_architecture(os.uname().machine), fresh=fresh)
    except HostLacks as refusal:
        return [Fact("QEMU", FactState.MISSING, refusal.message, "machines cannot run", refusal.hint or "")]
    build = Fact("QEMU", FactState.OK, f"{notes.build.version} ({notes.build.binary}, {notes.build.machine})")
    return [build, *accelerator_facts({name: (proof.works, proof.detail) for name, proof in notes.proofs.items()})]


def accelerator_facts(proofs: dict[str, tuple[bool, str]]) -> list[Fact]:
    """A fact for each accelerator, from whether it works and what was seen. One that works is enough to run machines."""
    any_works = any(works for works, _ in proofs.values())
    found = []
    for name, (works, detail) in proofs.items():
        if works:
            found.append(Fact(name, FactState.OK, detail))
        elif any_works:
            costs = "machines are emulated, many times slower" if name == "kvm" else "none while another accelerator works"
            found.append(Fact(name, FactState.LIMITED, f"not used: {detail}", costs, _accelerator_fix(name)))
        else:
            found.append(Fact(name, FactState.MISSING, detail, "machines cannot run", _accelerator_fix(name)))
    return found


_NESTED: Final = (
    "switch nested virtualization on where this computer itself runs, there: sudo modprobe -r {0} && sudo modprobe {0} nested=1"
)


def _accelerator_fix(name: str) -> str:
    """Of emulation, QEMU itself is at fault."""
    return kvm_fix() if name == "kvm" else "sudo apt-get install --reinstall qemu-system-x86"


def kvm_fix(device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What helps against a /dev/kvm that does not work depends on how it does not."""
    if not device.exists():
        return "switch virtualization on in the firmware, then: sudo modprobe kvm_intel || sudo modprobe kvm_amd"
    if not os.access(device, os.R_OK | os.W_OK):
        return "sudo usermod --append --groups kvm $USER (then log in anew)"
    words = cpuinfo.read_text().split()
    module = "kvm_amd" if "AuthenticAMD" in words else "kvm_intel"
    if "hypervisor" in words:  # a flag that only virtual machines' CPUs have
        return _NESTED.format(module)
    return f"sudo modprobe -r {module} && sudo modprobe {module}"


def _fix_of(refusal: InsulaError) -> str:
    """Its hint, when that is a command that mends (a failed compiler's only shows the failure again; then it is the compiler)."""
    mends = refusal.hint if isinstance(refusal, HostLacks) else None
    return mends or "sudo apt-get install --reinstall gcc musl-tools"


def _forwarding(home: Home) -> list[Fact]:
    """What others' packet filters do to our networks may change at any time. Only as root do these forward anything."""
    from insula.networks.naming import home_key
    from insula.networks.strangers import who_blocks

    if os.geteuid() != 0:
        return []
    costs = "machines on NAT networks do not get out; among themselves, with this host and by published ports they speak"
    return [
        Fact("forwarding", FactState.LIMITED, blocker.words(), costs, blocker.fix) for blocker in who_blocks(home_key(home.root))
    ]


def _kept_facts(home: Home, operation: Operation, *, fresh: bool) -> list[Fact]:
    """The facts that are proved once per boot of the host, from the notebook or anew."""
    notebook = {} if fresh else _read(home)
    now: dict[str, _Kept] = {}
    for probe in _probes():
        rests_on = probe.rests_on()
        known = notebook.get(probe.name)
        if known is None or known.rests_on != rests_on:
            operation.tell(f"trying {probe.name}")
            known = _Kept(rests_on, probe.facts())
        now[probe.name] = known
    if now != notebook:
        _write(home, now)
    return [fact for kept in now.values() for fact in kept.facts]


def _probes() -> tuple[facts.Probe, ...]:
    from insula.networks import reach  # only here: most who import this want its packages

    return (*facts.HOST_PROBES, reach.PROBE)


def _path(home: Home) -> Path:
    return home.host / f"facts-{facts.boot_id()}.json"


def _read(home: Home) -> dict[str, _Kept]:
    """What was proved since the host booted. A notebook that is damaged or of another version is no loss: prove it again."""
    try:
        notebook = msgspec.json.decode(_path(home).read_bytes(), type=_Notebook)
    except (OSError, msgspec.MsgspecError):
        return {}
    return notebook.kept if notebook.schema == _SCHEMA else {}


def _write(home: Home, kept: dict[str, _Kept]) -> None:
    """Remember what was proved, and forget former boots. A folder that cannot be written has a fact of its own."""
    path = _path(home)
    try:
        home.host.mkdir(parents=True, exist_ok=True)
        write_record(path, _Notebook(_SCHEMA, kept))
        for former in home.host.glob("facts-*.json"):
            if former != path:
                former.unlink(missing_ok=True)
    except (OSError, HostLacks):
        return
