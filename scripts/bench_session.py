"""What the FUSE session adds to plain pyfuse3, with a filesystem that costs nothing (tests/mount/memoryfs.py).

Each round runs every contestant once, so that what else the machine does hits all alike; the table shows
medians over the rounds, and ratios to plain pyfuse3: above 1.00 is faster. Needs the right to mount.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, os.fspath(Path(__file__).parents[1] / "tests" / "mount"))

from servers import serving

CONTESTANTS: dict[str, dict[str, Any]] = {
    "plain": {"handshake": False},
    "handshake": {"polling": False},
    "handshake and polling": {},
}
FILES = 4000
WRITES = 20_000


def measure(options: dict[str, Any], files: int) -> dict[str, float]:
    """Rates per second (bytes in MB) of one mount."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-session-") as directory,
        serving(Path(directory), **options) as server,
    ):
        root = os.fspath(server.mountpoint)
        rates = {}
        start = time.perf_counter()
        for number in range(files):
            os.close(os.open(f"{root}/{number}", os.O_CREAT | os.O_WRONLY))
        rates["create and close /s"] = files / (time.perf_counter() - start)
        start = time.perf_counter()
        for number in range(files):
            os.path.exists(f"{root}/nothing{number}")
        rates["look up in vain /s"] = files / (time.perf_counter() - start)
        start = time.perf_counter()
        for number in range(files):
            os.unlink(f"{root}/{number}")
        rates["unlink /s"] = files / (time.perf_counter() - start)
        fd, block = os.open(f"{root}/file", os.O_CREAT | os.O_RDWR), bytes(4096)
        start = time.perf_counter()
        for _ in range(WRITES):
            os.write(fd, block)
        os.fsync(fd)
        rates["4 KiB writes and fsync, MB/s"] = WRITES * 4096 / (time.perf_counter() - start) / 1e6
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        fd = os.open(f"{root}/file", os.O_RDONLY)
        start = time.perf_counter()
        size = 0
        while data := os.read(fd, 1 << 20):
            size += len(data)
        rates["cold sequential read, MB/s"] = size / (time.perf_counter() - start) / 1e6
        os.close(fd)
        return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.rounds):
        for name, options in CONTESTANTS.items():
            runs[name].append(measure(options, arguments.files))
    medians = {
        name: {key: statistics.median(run[key] for run in rounds) for key in rounds[0]} for name, rounds in runs.items()
    }
    if arguments.json:
        print(json.dumps(medians))
        return
    print(f"{'':30}" + "".join(f"{name:>32}" for name in medians))
    for key, base in medians["plain"].items():
        cells = (f"{values[key]:,.0f} ({values[key] / base:.2f})" for values in medians.values())
        print(f"{key:30}" + "".join(f"{cell:>32}" for cell in cells))


if __name__ == "__main__":
    main()
