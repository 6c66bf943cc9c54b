"""Processes that create, mount, write, snapshot, restore, clone, rename, unmount and delete the same ten volumes.

Prints a table of what became of it all. The exit status is 1 where something is wrong: an operation hung or failed with
anything but a named error, or a record, mount, process or file is left that should not be.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.crowd import Tally, crowd, look
from tests.e2e.harness import Bench
from tests.e2e.loop import pool_on_loop_device

_PLACE = "/var/tmp"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seconds", type=float, nargs="?", default=60, help="for how long (default: 60)")
    parser.add_argument("seed", type=int, nargs="?", help="for what they do (default: a new one)")
    parser.add_argument("--processes", type=int, default=8, help="how many at once (default: 8)")
    parser.add_argument("--device", action="store_true", help="in a pool on a loop device")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"{options.processes} processes for {options.seconds:g} s with seed {seed}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="fusevol-crowd-", dir=_PLACE))
    bench = Bench(place, limit=600 + 2 * options.seconds)
    started = time.monotonic()
    try:
        with pool_on_loop_device(place, 8192) if options.device else nullcontext(), bench.watched():
            tally = crowd(bench, options.processes, options.seconds, seed)
            problems = tally.problems + trio.run(look, bench)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    _print_table(tally)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems, in {time.monotonic() - started:.0f} s")
    return 1 if problems else 0


def _print_table(tally: Tally) -> None:
    print(f"{'':18}{'done':>6}{'slowest':>10}   failed")
    for operation, outcomes in tally.outcomes.items():
        failed = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()) if name != "done")
        print(f"{operation:18}{outcomes.get('done', 0):>6}{tally.slowest[operation]:>8.1f} s   {failed or '-'}")


if __name__ == "__main__":
    sys.exit(main())
