"""How this very Insula is started again, from a clone or an installation alike."""

from __future__ import annotations

import sys
from pathlib import Path


def own_command(*words: str) -> tuple[str, ...]:
    """The command line ``insula WORDS`` of this interpreter and these sources, compiled files kept where ours are, or nowhere."""
    compiled = ("-X", f"pycache_prefix={sys.pycache_prefix}") if sys.pycache_prefix else ()
    silent = ("-B",) if sys.dont_write_bytecode else ()
    return (sys.executable, "-I", *compiled, *silent, str(Path(__file__).resolve().parents[1] / "__main__.py"), *words)
