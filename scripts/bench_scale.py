"""How a volume behaves with very many files, against itself when it was empty.

Files are created through the mount, a thousand in a directory, each with a few bytes. Rates are compared between the
first and the last files, in small turns of old and new, so that what else the machine does hits both alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

BIN = Path(sys.executable).parent
PER_DIRECTORY = 1000
TURNS = 10
TICKS = os.sysconf("SC_CLK_TCK")


def fusevol(*words: str | Path) -> str:
    return subprocess.run([BIN / "fusevol", *words], check=True, capture_output=True, text=True).stdout


class Mounted:
    """A volume that is made, filled, mounted and measured."""

    def __init__(self, base: Path, name: str) -> None:
        self.name, self.path = name, base / name
        self.path.mkdir()
        fusevol("create", name)
        self.mount_seconds = self.mount()

    def mount(self) -> float:
        start = time.perf_counter()
        fusevol("mount", self.name, self.path)
        return time.perf_counter() - start

    def umount(self) -> None:
        fusevol("umount", self.name)

    def remounts(self, times: int) -> float:
        """Seconds that a mount takes, the median."""
        taken = []
        for _ in range(times):
            self.umount()
            taken.append(self.mount())
        return statistics.median(taken)

    def create(self, directory: int, count: int = PER_DIRECTORY) -> float:
        """Fill a directory; seconds it took."""
        path = self.path / f"d{directory}"
        start = time.perf_counter()
        path.mkdir()
        for number in range(count):
            fd = os.open(path / f"file{number}", os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, b"some bytes")
            os.close(fd)
        return time.perf_counter() - start

    def look_up(self, directory: int) -> float:
        """Look a directory's files up that the kernel has forgotten; seconds it took."""
        path = self.path / f"d{directory}"
        Path("/proc/sys/vm/drop_caches").write_text("2")
        start = time.perf_counter()
        for number in range(PER_DIRECTORY):
            os.stat(path / f"file{number}")
        return time.perf_counter() - start

    @property
    def pid(self) -> int:
        title = f"{self.name} on {self.path}".encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if title in path.read_bytes():
                    return int(path.parent.name)
        raise SystemExit(f"{self.path} is not mounted any more")

    def memory(self) -> int:
        """Resident bytes of the mount process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def idle_cpu(self, seconds: float) -> float:
        """Share of a processor that it uses while nothing is asked of it."""
        stat = Path(f"/proc/{self.pid}/stat")
        used = [sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))]
        time.sleep(seconds)
        used.append(sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])))
        return (used[1] - used[0]) / TICKS / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_scale", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("."), help="directory on the disk to measure (default: here)")
    parser.add_argument("--files", type=int, default=1_000_000, help="files in the large volume (default 1,000,000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    if os.geteuid():
        raise SystemExit("scripts/bench_scale: run it as root: it drops the kernel's caches between lines")
    with tempfile.TemporaryDirectory(prefix="fusevol-scale-", dir=args.dir.absolute()) as base:
        os.environ["FUSEVOL_HOME"] = f"{base}/home"
        large, small = Mounted(Path(base), "large"), Mounted(Path(base), "small")
        try:
            directories = args.files // PER_DIRECTORY
            for directory in range(directories):
                large.create(directory)
                if sys.stderr.isatty():
                    print(f"\r{(directory + 1) * PER_DIRECTORY:,} files", end="", file=sys.stderr)
            filled = large.memory()
            creates: dict[str, list[float]] = {"large": [], "small": []}
            looks: dict[str, list[float]] = {"large": [], "small": []}
            for turn in range(TURNS):
                for volume, first in ((small, 0), (large, directories)):
                    creates[volume.name].append(volume.create(first + turn))
                    looks[volume.name].append(volume.look_up(turn * max(1, directories // TURNS) if first else turn))
            mounts = {volume.name: volume.remounts(5) for volume in (large, small)}
            result = {
                "files": args.files,
                "mount_ratio": mounts["large"] / mounts["small"],
                "create_ratio": statistics.median(creates["large"]) / statistics.median(creates["small"]),
                "lookup_ratio": statistics.median(looks["large"]) / statistics.median(looks["small"]),
                "memory_filled": filled,
                "memory_mounted": large.memory(),
                "idle_cpu": large.idle_cpu(10.0),
            }
        finally:
            large.umount()
            small.umount()
    if args.json:
        print(json.dumps(result))
        return
    print(f"a volume with {args.files:,} files, against an empty one")
    print(f"time to mount      {result['mount_ratio']:6.2f}")
    print(f"time to create     {result['create_ratio']:6.2f}")
    print(f"time to look up    {result['lookup_ratio']:6.2f}")
    print(f"memory of the mount process: {filled / 1e6:.0f} MB after creating them, "
          f"{result['memory_mounted'] / 1e6:.0f} MB when mounted anew")  # fmt: skip
    print(f"processor use when idle: {result['idle_cpu']:.2%}")


if __name__ == "__main__":
    main()
