"""The room of a TPM, and how it ends."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import pytest

from insula.errors import HostLacks, MachineEnded
from insula.host import process
from insula.isolation.tpm import explain_end, has_ended, start_tpm, tpm_argv
from insula.isolation.uids import jail_ids
from tests.framework.processes import inhabitants

_GET_CAPABILITY = 1
_ASKED = "11111111-2222-4333-8444-555555555555"


def test_its_room_has_one_place_to_write_and_no_network() -> None:
    argv = tpm_argv(Path("/machines/web/tpm/0"), 77)
    assert "bwrap" in argv
    assert {"--unshare-net", "--unshare-pid", "--unshare-ipc", "--as-pid-1"} <= set(argv)
    assert "--die-with-parent" not in argv
    writable = [argv[at + 1 : at + 3] for at, word in enumerate(argv) if word == "--bind"]
    assert writable == [["/machines/web/tpm/0", "/w/0"]]
    assert "--reuid=77" in argv


def test_it_answers_and_ends_with_its_lifeline_though_it_was_given_no_data_channel(tmp_path: Path) -> None:
    end, lifeline = start_tpm(tmp_path / "tpm" / "0", jail_ids(_ASKED).tpm)
    with end:
        end.settimeout(10)
        end.sendall(struct.pack(">I", _GET_CAPABILITY))
        assert end.recv(8)[:4] == bytes(4)
        assert not has_ended(end)
        os.close(lifeline)
        assert end.recv(8) == b""
        assert has_ended(end)


def test_its_end_is_seen_though_its_room_is_still_there(tmp_path: Path) -> None:
    end, lifeline = start_tpm(tmp_path / "tpm" / "0", jail_ids(_ASKED).tpm)
    with end:
        end.settimeout(10)
        end.sendall(struct.pack(">I", _GET_CAPABILITY))
        assert end.recv(8)[:4] == bytes(4)
        (swtpm,) = (pid for pid in inhabitants(tmp_path / "tpm") if Path(f"/proc/{pid}/comm").read_text() == "swtpm\n")
        os.kill(swtpm, signal.SIGKILL)
        assert end.recv(8) == b""
        os.close(lifeline)


def test_without_its_program_it_is_said_which_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SYSTEM_PATH", str(tmp_path))
    with pytest.raises(HostLacks, match="swtpm") as refusal:
        start_tpm(tmp_path / "tpm", None)
    assert refusal.value.hint == "run: apt-get install swtpm"
    assert not (tmp_path / "tpm").exists()


def test_a_state_that_cannot_be_used_is_told_apart(tmp_path: Path) -> None:
    error = explain_end(MachineEnded("QEMU: tpm-emulator: TPM result for CMD_INIT: 0x9"), tmp_path, None)
    assert (error.code, str(tmp_path) in (error.hint or "")) == ("tpm_damaged", True)
