"""Flip bits of a small stored volume in turn: each must lead to an error, or to no harm."""

import argparse
import sys

import trio

from fusevol.backends.memory import MemoryBackend
from fusevol.testing.damage import bits_to_flip, flip, make_volume, read_all, stored_blocks

EPOCH = 1 << 39


async def soak(sample: int | None, seed: int, *, clean: bool) -> tuple[int, int]:
    """Flips tried, and errors they led to; raises SystemExit at the first wrong answer."""
    backend = MemoryBackend()
    wanted = await make_volume(backend, "web", clean=clean, seed=seed)
    blocks = []
    for epoch in range(1, 4):
        blocks += await stored_blocks(backend, "web", epoch * EPOCH, epoch * EPOCH + (1 << 20))
    tried = errors = 0
    for bit in bits_to_flip(blocks, sample, seed):
        await flip(backend, "web", bit)
        found = await read_all(backend, "web")
        await flip(backend, "web", bit)
        if found != wanted and (isinstance(found, dict) or '"web"' not in str(found)):
            raise SystemExit(f"bit {bit & 7} of byte {bit >> 3:#x}: wrong answer: {found!r}"[:500])
        tried, errors = tried + 1, errors + (not isinstance(found, dict))
        if sys.stderr.isatty() and not tried % 500:
            print(f"\r{tried} flips, {errors} reported", end="", file=sys.stderr, flush=True)
    return tried, errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/damage_soak", description=__doc__)
    parser.add_argument("--sample", type=int, help="flip so many bits of each block, not all of them")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for clean in True, False:
        tried, errors = trio.run(lambda clean=clean: soak(args.sample, args.seed, clean=clean))
        state = "closed" if clean else "writer died"
        print(f"{state}: {tried} bits flipped, {errors} reported, {tried - errors} harmless, 0 wrong")


if __name__ == "__main__":
    main()
