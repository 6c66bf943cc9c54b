"""The log-structured volume (file backend) against plain files of the same directory, in one run.

Each round runs every contestant once, so that what else the machine does hits all alike; the table shows
medians over the rounds, and ratios of them: above 1.00 the volume is faster. Times of a shared machine mean
little by themselves.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fusevol.backends.file import FileBackend
from fusevol.log import LogOptions, LogVolume, clone_volume, create_volume, delete_volume, open_volume

MIB = 1 << 20
BLOCK = 4096
Row = tuple[str, str, dict[str, float]]


class Plain:
    """A plain file, buffered or O_DIRECT."""

    def __init__(self, path: Path, *, direct: bool) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o600)
        self.buffer = memoryview(mmap.mmap(-1, MIB))

    def write(self, data: memoryview, offset: int) -> None:
        os.pwrite(self.fd, data, offset)

    def read(self, size: int, offset: int) -> None:
        os.preadv(self.fd, [self.buffer[:size]], offset)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def drop(self) -> None:
        os.fdatasync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self.fd)


def drop_caches(directory: Path) -> None:
    for path in directory.rglob("*.seg"):
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def aligned(size: int, seed: int) -> memoryview:
    view = memoryview(mmap.mmap(-1, size))
    view[:] = random.Random(seed).randbytes(size)
    return view


class Bench:
    def __init__(self, directory: Path, size: int, ops: int, syncs: int, rounds: int, seed: int) -> None:
        self.directory, self.size, self.ops, self.syncs, self.rounds = directory, size, ops, syncs, rounds
        self.data = aligned(MIB, seed)
        self.block = self.data[:BLOCK]
        rng = random.Random(seed)
        blocks = size // BLOCK
        self.offsets = [rng.randrange(blocks) * BLOCK for _ in range(ops)]
        self.reads = [rng.randrange(blocks) * BLOCK for _ in range(min(ops, 5000))]
        self.times: dict[str, dict[str, list[float]]] = {}

    def note(self, what: str, who: str, seconds: float) -> None:
        self.times.setdefault(what, {}).setdefault(who, []).append(seconds)

    def timed(self, what: str, who: str, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.note(what, who, time.perf_counter() - start)

    def plain(self, who: str, *, direct: bool) -> None:
        path = self.directory / who
        file = Plain(path, direct=direct)
        sequential = range(0, self.size, MIB)

        def seq_write() -> None:
            for offset in sequential:
                file.write(self.data, offset)
            file.flush()

        def random_write() -> None:
            for offset in self.offsets:
                file.write(self.block, offset)
            file.flush()

        def sync_write() -> None:
            for offset in self.offsets[: self.syncs]:
                file.write(self.block, offset)
                file.flush()

        def seq_read() -> None:
            for offset in sequential:
                file.read(MIB, offset)

        def random_read() -> None:
            for offset in self.reads:
                file.read(BLOCK, offset)

        self.timed("sequential write, flush at the end", who, seq_write)
        for heat in "cold", "hot":
            if heat == "cold":
                file.drop()
            self.timed(f"sequential read, {heat}", who, seq_read)
        for heat in "cold", "hot":
            if heat == "cold":
                file.drop()
            self.timed(f"random 4 KiB read, {heat}", who, random_read)
        self.timed("random 4 KiB write, flush at the end", who, random_write)
        self.timed("4 KiB write, flush each", who, sync_write)
        file.close()
        path.unlink()

    async def volume(self) -> None:
        who, directory = "fusevol", self.directory / "volumes"
        backend = FileBackend(directory)
        await create_volume(backend, "bench")

        async def timed(what: str, work: Awaitable[None]) -> None:
            start = time.perf_counter()
            await work
            self.note(what, who, time.perf_counter() - start)

        async def seq_write(volume: LogVolume) -> None:
            for offset in range(0, self.size, MIB):
                await volume.write(self.data, offset)
            await volume.flush()

        async def random_write(volume: LogVolume) -> None:
            for offset in self.offsets:
                await volume.write(self.block, offset)
            await volume.flush()

        async def sync_write(volume: LogVolume) -> None:
            for offset in self.offsets[: self.syncs]:
                await volume.write(self.block, offset)
                await volume.flush()

        async def seq_read(volume: LogVolume) -> None:
            for offset in range(0, self.size, MIB):
                await volume.read(MIB, offset)

        async def random_read(volume: LogVolume) -> None:
            for offset in self.reads:
                await volume.read(BLOCK, offset)

        async with open_volume(backend, "bench") as volume:
            await timed("sequential write, flush at the end", seq_write(volume))
        for what, work in ("sequential read", seq_read), ("random 4 KiB read", random_read):
            drop_caches(directory)
            async with open_volume(backend, "bench") as volume:
                await timed(f"{what}, cold", work(volume))
                await timed(f"{what}, hot", work(volume))
        async with open_volume(backend, "bench") as volume:
            await timed("random 4 KiB write, flush at the end", random_write(volume))
            await timed("4 KiB write, flush each", sync_write(volume))
        await delete_volume(backend, "bench")
        await backend.aclose()

    async def scaling(self, blocks: int) -> dict[str, float]:
        """Seconds of open, snapshot, clone and restore of a volume with so many mapped blocks (medians)."""
        backend = FileBackend(self.directory / "scaling")
        await create_volume(backend, "scaling")
        rng = random.Random(blocks)
        times: dict[str, list[float]] = {}

        async def timed(what: str, work: Awaitable[object]) -> None:
            start = time.perf_counter()
            await work
            times.setdefault(what, []).append(time.perf_counter() - start)

        async with open_volume(backend, "scaling") as volume:
            for at in range(0, blocks, 256):
                await volume.write(self.data[: min(256, blocks - at) * BLOCK], at * BLOCK)
        for i in range(7):
            start = time.perf_counter()
            async with open_volume(backend, "scaling") as volume:
                times.setdefault("open", []).append(time.perf_counter() - start)
                for _ in range(16):
                    await volume.write(self.block, rng.randrange(blocks) * BLOCK)
                await timed("snapshot", volume.snapshot(f"s{i}"))
                await volume.write(self.block, rng.randrange(blocks) * BLOCK)
                await timed("restore", volume.restore(f"s{i}"))
            await timed("clone", clone_volume(backend, "scaling", f"s{i}", f"clone{i}"))
        for volume_id in await backend.list():
            if volume_id != "scaling":
                await delete_volume(backend, volume_id)
        await backend.aclose()
        return {what: statistics.median(values) for what, values in times.items()}

    def memory(self, blocks: int) -> dict[str, float]:
        """MiB of resident memory for the volume that `scaling` left, in a process of its own."""
        script = [sys.executable, __file__, "--measure-memory", str(self.directory / "scaling"), str(blocks)]
        found: dict[str, float] = json.loads(subprocess.run(script, check=True, capture_output=True).stdout)
        return found


async def measure_memory(directory: str, blocks: int) -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB

    options = LogOptions(cached_nodes=blocks // 1024 * 2 + 64)
    backend = FileBackend(directory)
    # Another volume first, so that what the program itself needs is there already.
    await create_volume(backend, "empty")
    async with open_volume(backend, "empty", options=options) as volume:
        await volume.read(BLOCK, 0)
    before = resident()
    async with open_volume(backend, "scaling", options=options) as volume:
        await volume.read(BLOCK, 0)
        unused = resident()
        for leaf in range(0, blocks, 1024):
            await volume.read(BLOCK, leaf * BLOCK)
        print(json.dumps({"in use": resident() - unused, "not in use": unused - before}))


def rows(bench: Bench) -> list[dict[str, object]]:
    table = []
    for what, by in bench.times.items():
        medians = {who: statistics.median(values) for who, values in by.items()}
        ours = medians["fusevol"]
        count = {
            "sequential": bench.size // MIB,
            "random 4 KiB w": len(bench.offsets),
            "random 4 KiB r": len(bench.reads),
            "4 KiB write": bench.syncs,
        }
        ops = next(number for start, number in count.items() if what.startswith(start))
        table.append(
            {
                "what": what,
                "operations": ops,
                "seconds": medians,
                "ratio_to_direct": medians["direct"] / ours,
                "ratio_to_buffered": medians["buffered"] / ours,
            }
        )
    return table


def show(table: list[dict[str, object]], scaling: dict[int, dict[str, float]], memory: dict[str, float]) -> None:
    print(f"{'':40}{'O_DIRECT':>12}{'buffered':>12}{'fusevol':>12}{'/O_DIRECT':>11}{'/buffered':>11}")
    for row in table:
        seconds, ops = row["seconds"], row["operations"]
        rate = {who: ops / s for who, s in seconds.items()}  # type: ignore[attr-defined, operator]
        unit = "MiB/s" if row["what"].startswith("sequential") else "/s"  # type: ignore[attr-defined]
        cells = "".join(f"{rate[who]:>7.0f} {unit:4}"[:12].rjust(12) for who in ("direct", "buffered", "fusevol"))
        print(f"{row['what']:40}{cells}{row['ratio_to_direct']:>11.2f}{row['ratio_to_buffered']:>11.2f}")
    if not scaling:
        return
    small, large = sorted(scaling)
    print(f"\n{'mapped blocks':40}{small:>12,}{large:>12,}{'ratio':>12}")
    for what, seconds in scaling[small].items():
        print(f"{what:40}{seconds * 1e3:>9.1f} ms{scaling[large][what] * 1e3:>9.1f} ms", end="")
        print(f"{scaling[large][what] / seconds:>12.2f}")
    for what, mib in memory.items():
        print(f"memory, {large:,} blocks {what:20}{mib:>18.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_log", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("."), help="directory on the disk to measure (default: here)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of file and volume (default 1024)")
    parser.add_argument("--ops", type=int, default=20000, help="random operations a round (default 20000)")
    parser.add_argument("--syncs", type=int, default=500, help="writes with a flush each a round (default 500)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--blocks", type=int, nargs=2, default=[10_000, 1_000_000], help="volumes to compare by size")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the comparison by size")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_memory:
        trio.run(measure_memory, args.measure_memory[0], int(args.measure_memory[1]))
        return
    directory = Path(tempfile.mkdtemp(prefix="fusevol-bench-", dir=args.dir))
    try:
        bench = Bench(directory, args.size * MIB, args.ops, args.syncs, args.rounds, args.seed)
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            bench.plain("direct", direct=True)
            trio.run(bench.volume)
            bench.plain("buffered", direct=False)
        scaling: dict[int, dict[str, float]] = {}
        memory: dict[str, float] = {}
        for blocks in [] if args.no_scaling else sorted(args.blocks):
            print(f"{blocks:,} mapped blocks", file=sys.stderr)
            shutil.rmtree(directory / "scaling", ignore_errors=True)
            scaling[blocks] = trio.run(bench.scaling, blocks)
            memory = bench.memory(blocks)
        if args.json:
            print(json.dumps({"seed": args.seed, "rows": rows(bench), "scaling": scaling, "memory_mib": memory}))
        else:
            show(rows(bench), scaling, memory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
