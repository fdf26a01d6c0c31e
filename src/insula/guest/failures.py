"""Turns an `error` that came over the wire into an exception of our own."""

from __future__ import annotations

from collections.abc import Mapping

from insula.errors import AgentAbsent, GuestError, InsulaError, MachineEnded, WrongState
from insula.guest.wire import Fields
from insula.model.text import clean

# error word: (code, the fact; {} is the path or the name that was asked for)
_FACTS = {
    "ENOENT": ("no_such_file", "no such file in the guest: {}"),
    "EACCES": ("permission_denied", "permission denied in the guest: {}"),
    "EPERM": ("permission_denied", "not permitted in the guest: {}"),
    "ENOTDIR": ("not_a_folder", "not a folder in the guest: {}"),
    "EISDIR": ("is_a_folder", "a folder in the guest, not a file: {}"),
    "EEXIST": ("file_exists", "exists already in the guest: {}"),
    "ENOSPC": ("guest_disk_full", "no space left on the guest's disk: {}"),
    "EFBIG": ("file_too_large", "a file in the guest without a size and with no end in sight: {}"),
    "EROFS": ("read_only", "a read-only file system in the guest: {}"),
    "ELOOP": ("too_many_links", "too many symbolic links in the guest: {}"),
    "ENAMETOOLONG": ("name_too_long", "a name too long for the guest: {}"),
    "EPROTO": ("garbled", "the guest's agent says that the protocol was broken: {}"),
    "EAGAIN": ("too_many_channels", "the guest's agent has too much to do at once: {}"),
    "ETIMEDOUT": ("timeout", "it took too long: {}"),
    "EHANGUP": ("hung_up", "the request was hung up by another one: {}"),
    "ERESET": ("guest_resets", "the guest was reset again and again: {}"),
    "ELIFE": ("guest_began_anew", "the guest went down or began anew meanwhile: {}"),
}
_EXEC_FACTS = {
    "ENOENT": ("command_not_found", "no such command in the guest: {}"),
    "EACCES": ("command_not_executable", "not executable in the guest: {}"),
    "ECHDIR": ("no_such_folder", "no such folder in the guest: {}"),
    "EUSER": ("no_such_user", "no such user in the guest: {}"),
}


def failure(
    untrusted_result: Fields, subject: str, *, exec_verb: bool = False, folders: Mapping[bytes, bytes] | None = None
) -> InsulaError:
    """The exception for a RESULT with `error`. ``subject`` is what the request was about: a path, a command, a verb.

    ``folders`` tells for the first name of a relative path in which folder of the guest it is (``b""`` for any other name).
    """
    word = _word(untrusted_result.text("error"))
    message = clean(untrusted_result.text("message"), longest=500)
    if word == "EAGENT":
        return AgentAbsent(
            "nobody answers inside the guest: its agent is not running (yet)",
            hint="the guest may still be starting; `insula console NAME` shows what it prints",
        )
    if word == "EPAUSED":
        return WrongState("the machine is paused", hint="to let it run on: insula resume NAME")
    if word == "ENDED":
        reason = clean(untrusted_result.text("reason"), longest=500) or message
        return MachineEnded("the machine ended" + (f": {reason}" if reason else ""))
    path = _absolute(untrusted_result.raw("path"), folders or {})
    code, fact = (exec_verb and _EXEC_FACTS.get(word)) or _FACTS.get(word) or (f"guest_{word.lower()}", f"{word}: {{}}")
    about = clean(path, longest=1000) if path else clean(subject, longest=1000)
    tail = f" ({message})" if message and word not in _EXEC_FACTS and word not in _FACTS else ""
    return GuestError(fact.format(about) + tail, code=code)


def _absolute(untrusted_path: bytes, folders: Mapping[bytes, bytes]) -> bytes:
    folder = folders.get(untrusted_path.partition(b"/")[0], folders.get(b""))
    if folder is None or not untrusted_path or untrusted_path.startswith(b"/"):
        return untrusted_path
    return folder.rstrip(b"/") + b"/" + untrusted_path


def _word(untrusted_word: str) -> str:
    """An errno's name, or UNKNOWN: what is not such a word must not become a code of ours."""
    good = 0 < len(untrusted_word) <= 24 and untrusted_word.isascii() and untrusted_word.isalnum()
    return untrusted_word.upper() if good else "UNKNOWN"
