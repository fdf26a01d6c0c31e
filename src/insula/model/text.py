"""Makes text of others (a guest, a package script, who typed a name) fit to be shown to a person."""

from __future__ import annotations

LONGEST = 4096  # characters


def clean(untrusted: bytes | str, *, lines: bool = False, longest: int = LONGEST) -> str:
    """``untrusted`` without anything a terminal or a log would obey.

    Control characters, escapes, marks that turn the writing direction and other invisible characters are shown as
    ``\\x1b`` or ``\\u202e``, bytes that are no UTF-8 as ``\\xff``. ``lines`` keeps line ends and tabs. What is beyond
    ``longest`` characters is cut off, shown by an ellipsis.
    """
    if isinstance(untrusted, bytes):
        # Four bytes make a character at most: the rest would be cut off anyway.
        untrusted = untrusted[: 4 * longest + 4].decode(errors="surrogateescape")
    kept = "\n\t" if lines else ""
    shown = "".join(one if one.isprintable() or one in kept else _escape(one) for one in untrusted[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape's sign for the byte 0x80…0xFF
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
