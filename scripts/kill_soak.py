"""Rounds of: real writers on a real mount, kill -9 of its process at a random moment, mount again, and look.

After each round: everything that fsync acknowledged is there, snapshots have what was written before them, and
`fusevol check` finds nothing. The exit status is 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.crashing import Rounds
from tests.e2e.harness import Bench, Volume
from tests.e2e.loop import pool_on_loop_device

#: On disk: the volume is written with O_DIRECT.
_PLACE = "/var/tmp"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100, help="how many times (default: 100)")
    parser.add_argument("--seed", type=int, help="for moments and content (default: a new one)")
    parser.add_argument("--encrypted", action="store_true", help="in a pool that encrypts")
    parser.add_argument("--device", action="store_true", help="in a pool on a loop device")
    parser.add_argument("--keep", action="store_true", help="keep the files where something was lost")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"{options.rounds} rounds with --seed {seed}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="fusevol-kill-", dir=_PLACE))
    elsewhere = place / "acknowledged"
    elsewhere.mkdir()
    bench = Bench(place, limit=60 + 60 * options.rounds)
    started, steps, again, problems = time.monotonic(), 0, 0, list[str]()
    seconds: list[float] = []
    try:
        with pool_on_loop_device(place, 8192) if options.device else nullcontext(), bench.watched():
            volume = Volume(bench, place / "home")
            if options.encrypted:
                volume.fusevol("pool", "key", f"{place}/key")
                volume.fusevol("pool", "add", "vault", "file", f"path={place}/vault", f"key_file={place}/key")
            volume.create("--pool", "vault" if options.encrypted else "default").mount()
            rounds = Rounds(volume, elsewhere, seed)
            for number in range(1, options.rounds + 1):
                done = rounds.run()
                steps, again = steps + done.steps, again + done.killed_again
                problems += done.problems
                seconds.append(done.seconds)
                for problem in done.problems:
                    print(problem, flush=True)
                if number % 10 == 0 or number == options.rounds:
                    print(f"round {number}: {steps} acknowledged steps, {len(problems)} lost", flush=True)
            volume.umount()
            volume.check()
    finally:
        if problems and options.keep:
            print(f"kept: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    print(
        f"{options.rounds} kills and {again} more while mounting in {time.monotonic() - started:.0f} s; "
        f"{steps} steps acknowledged, {len(problems)} lost; mounting again took "
        f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s; check found nothing"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
