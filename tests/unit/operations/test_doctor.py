"""Facts are proved once per boot, anew when asked or when what they rest on changed, and a damaged notebook costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.host import facts, packages
from insula.model.doctor import Fact, FactState
from insula.model.requests import ExamineHost
from insula.operations import doctor
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.store.names import Home


class Bench:
    """A home and one probe that counts how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.file = folder / "rests-on"
        self.asked = 0
        self.state = FactState.OK

    def probe(self) -> Fact:
        self.asked += 1
        return Fact("counted", self.state, f"asked {self.asked} times", "something")

    def examine(self, *, fix: bool = False) -> Fact:
        report = doctor.doctor(Context(self.home), ExamineHost(fix=fix), Operation("doctor"))
        assert report.usable is all(fact.state is not FactState.MISSING for fact in report.facts)
        return next(fact for fact in report.facts if fact.name == "counted")

    @property
    def notebook(self) -> Path:
        (path,) = self.home.host.glob("facts-*.json")
        return path


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path)
    monkeypatch.setattr(doctor, "_probes", lambda: (facts.Probe("counted", bench.probe, (str(bench.file),)),))
    monkeypatch.setattr(doctor, "native_parts", lambda operation: Fact("native parts", FactState.OK, "not built here"))
    monkeypatch.setattr(doctor, "qemu_facts", lambda home, operation, *, fresh: [])
    monkeypatch.setattr(packages, "packages", lambda: ())
    return bench


def test_a_fact_is_proved_once(bench: Bench) -> None:
    assert bench.examine().detail == "asked 1 times"
    assert bench.examine().detail == "asked 1 times"
    assert bench.asked == 1


def test_a_fact_is_proved_anew_when_a_file_changed_and_when_fixing(bench: Bench) -> None:
    bench.examine()
    bench.file.touch()
    assert bench.examine().detail == "asked 2 times"
    assert bench.examine(fix=True).detail == "asked 3 times"
    assert bench.examine().detail == "asked 3 times"


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 99, "kept": {}}', b"\xff\x00"])
def test_a_damaged_notebook_is_written_anew(bench: Bench, content: bytes) -> None:
    bench.examine()
    bench.notebook.write_bytes(content)
    assert bench.examine().detail == "asked 2 times"
    assert bench.examine().detail == "asked 2 times"


def test_another_boot_forgets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.examine()
    monkeypatch.setattr(facts, "boot_id", lambda: "another-boot")
    assert bench.examine().detail == "asked 2 times"
    assert bench.notebook.name == "facts-another-boot.json"


def test_what_is_missing_makes_the_host_unusable(bench: Bench) -> None:
    bench.state = FactState.LIMITED
    bench.examine()
    assert doctor.doctor(Context(bench.home), ExamineHost(), Operation("doctor")).usable
    bench.state = FactState.MISSING
    bench.file.touch()
    assert not doctor.doctor(Context(bench.home), ExamineHost(), Operation("doctor")).usable


def test_progress_is_told(bench: Bench) -> None:
    heard: list[str] = []
    doctor.doctor(Context(bench.home), ExamineHost(), Operation("doctor", listener=lambda news: heard.append(news.step)))
    assert "trying counted" in heard


def _states(proofs: dict[str, tuple[bool, str]]) -> dict[str, FactState]:
    return {fact.name: fact.state for fact in doctor.accelerator_facts(proofs)}


def test_a_kvm_that_opens_but_runs_nothing_is_told_and_not_used() -> None:
    hung = (False, "hung after: an invalid opcode")
    assert _states({"kvm": hung, "tcg": (True, "ran")}) == {"kvm": FactState.LIMITED, "tcg": FactState.OK}
    (fact, _) = doctor.accelerator_facts({"kvm": hung, "tcg": (True, "ran")})
    assert fact.detail == "not used: hung after: an invalid opcode"
    assert fact.costs
    assert fact.fix


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (
            "vendor_id : GenuineIntel\nflags : vmx hypervisor",
            "where this computer itself runs, there: sudo modprobe -r kvm_intel",
        ),
        ("vendor_id : AuthenticAMD\nflags : svm hypervisor", "where this computer itself runs, there: sudo modprobe -r kvm_amd"),
        ("vendor_id : AuthenticAMD\nflags : svm", "sudo modprobe -r kvm_amd && sudo modprobe kvm_amd"),
    ],
)
def test_what_mends_a_kvm_depends_on_where_this_computer_runs(tmp_path: Path, words: str, fix: str) -> None:
    cpuinfo, device = tmp_path / "cpuinfo", tmp_path / "kvm"
    cpuinfo.write_text(words)
    assert "sudo modprobe kvm_intel ||" in doctor.kvm_fix(device, cpuinfo)
    device.touch()
    assert fix in doctor.kvm_fix(device, cpuinfo)


def test_without_any_accelerator_machines_cannot_run() -> None:
    nothing = (False, "nothing")
    assert _states({"kvm": nothing, "tcg": nothing}) == {"kvm": FactState.MISSING, "tcg": FactState.MISSING}


def test_with_kvm_emulation_may_fail() -> None:
    assert _states({"kvm": (True, "ran"), "tcg": (False, "no")}) == {"kvm": FactState.OK, "tcg": FactState.LIMITED}
