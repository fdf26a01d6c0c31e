"""``python -m bench``: measure, print a table in Markdown, and write it into SPECIFICATION.md if asked to."""

from __future__ import annotations

import argparse
import sys
import traceback

from bench.bars import BARS
from bench.report import host, now, table, write
from bench.world import World


def main() -> int:
    """Returns 1 when a bar was missed, or could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Insula against the same work by hand.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure (default: all): {', '.join(BARS)}")
    parser.add_argument("--n", type=int, default=0, metavar="N", help="pairs of each (default: what each says)")
    parser.add_argument("--write", action="store_true", help="put the rows into SPECIFICATION.md")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BARS]:
        parser.error(f"nothing is named {', '.join(unknown)}; there are {', '.join(BARS)}")
    world = World()
    about = host(world.board())
    lines, missed = [], 0
    for name in given.names or BARS:
        bar = BARS[name]
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows = bar.measure(bar, world, given.n or bar.n)
        except Exception:  # noqa: BLE001 (told, and counted as missed: what else there is to measure takes half an hour)
            traceback.print_exc()
            missed += 1
            continue
        lines += [row.line(now()) for row in rows]
        missed += sum(not row.met for row in rows)
        if given.write:
            write(about, lines)
    print(about, table(lines), sep="\n\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
