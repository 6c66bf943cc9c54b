"""A mounted volume against a plain directory (ext4, or whatever the disk has) and JuiceFS, in one run.

JuiceFS keeps its metadata in SQLite and its data in files on the same disk. Every round runs every contestant
once on each line, so that what else the machine does hits all alike; the table shows medians over the rounds, and
ratios of them: above 1.00 the volume is faster. Times of a shared machine mean little by themselves.
"""

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_chart import svg

BLOCK = 4096
MIB = 1 << 20
BIN = Path(sys.executable).parent


def run(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, user: str = "") -> str:
    command = [str(word) for word in words]
    if user:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Contestant:
    """Something to run on: `path` is a directory of it. remount: let go of all that is cached. finish: clean up."""

    name = "ext4"

    def __init__(self, base: Path) -> None:
        self.path = base / self.name
        self.path.mkdir()

    def remount(self) -> None:
        drop_caches()

    def close(self) -> None:
        pass

    def finish(self) -> None:
        pass


class Fusevol(Contestant):
    name = "fusevol"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.env = os.environ | {"FUSEVOL_HOME": str(base / f"{self.name}-home")}
        run(BIN / "fusevol", "create", "bench", "--pool", self.pool(base), env=self.env)
        run(BIN / "fusevol", "mount", "bench", self.path, env=self.env)

    def pool(self, base: Path) -> str:
        return "default"

    def remount(self) -> None:
        self.close()
        drop_caches()
        run(BIN / "fusevol", "mount", "bench", self.path, env=self.env)

    def close(self) -> None:
        run(BIN / "fusevol", "umount", "bench", env=self.env)


class Encrypted(Fusevol):
    name = "encrypted"

    def pool(self, base: Path) -> str:
        run(BIN / "fusevol", "pool", "key", base / "key", env=self.env)
        words = ("file", f"path={base}/vault", f"key_file={base}/key")
        run(BIN / "fusevol", "pool", "add", "vault", *words, env=self.env)
        return "vault"


class OnDevice(Fusevol):
    """On a loop device: a file of the same disk, all of whose blocks it has already."""

    name = "device"

    def pool(self, base: Path) -> str:
        image = base / "image"
        run("fallocate", "--length", "8G", image)
        self.device = run("losetup", "--find", "--show", "--direct-io=on", image).strip()
        run(BIN / "fusevol", "pool", "add", "disk", "device", f"path={self.device}", env=self.env)
        return "disk"

    def finish(self) -> None:
        run("losetup", "--detach", self.device)


class JuiceFS(Contestant):
    name = "juicefs"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.meta = f"sqlite3://{base}/juicefs.db"
        self.cache = base / "juicefs-cache"
        run(BIN / "juicefs", "format", "--trash-days", "0", "--storage", "file", "--bucket", f"{base}/juicefs-data/",
            self.meta, "bench")  # fmt: skip
        self._mount()

    def _mount(self) -> None:
        run(BIN / "juicefs", "mount", "-d", "--no-usage-report", "--cache-dir", self.cache, "--log",
            f"{self.cache}.log", self.meta, self.path)  # fmt: skip

    def remount(self) -> None:
        self.close()
        drop_caches()
        self._mount()

    def close(self) -> None:
        run(BIN / "juicefs", "umount", self.path)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CREAT, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


class Bench:
    def __init__(self, scale: float, pgbench: bool) -> None:
        self.files = int(5000 * scale)
        self.size = int(512 * scale) * MIB
        self.syncs = int(300 * scale)
        self.pgbench = pgbench
        self.data = memoryview(mmap.mmap(-1, MIB))
        self.data[:] = os.urandom(MIB)
        #: line -> contestant -> rates, one a round; and the unit of each line
        self.rates: dict[str, dict[str, list[float]]] = {}
        self.units: dict[str, str] = {}

    def timed(self, line: str, unit: str, amount: float, who: Contestant, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        rate = amount / (time.perf_counter() - start)
        self.units[line] = unit
        self.rates.setdefault(line, {}).setdefault(who.name, []).append(rate)

    def small_files(self, who: Contestant) -> None:
        path, count, block = who.path / "small", self.files, self.data[:BLOCK]
        path.mkdir()

        def create() -> None:
            for i in range(count):
                os.close(os.open(path / f"empty{i}", os.O_CREAT | os.O_WRONLY, 0o644))

        def create_4k() -> None:
            for i in range(count):
                with opened(path / f"block{i}", os.O_WRONLY) as fd:
                    os.write(fd, block)

        def stat() -> None:
            for i in range(count):
                os.stat(path / f"empty{i}")

        def unlink() -> None:
            for i in range(count):
                os.unlink(path / f"empty{i}")

        self.timed("create + close", "/s", count, who, create)
        self.timed("create + 4 KiB + close", "/s", count, who, create_4k)
        stat()
        self.timed("stat, hot", "/s", count, who, stat)
        who.remount()
        self.timed(f"readdir of {2 * count:,}", "/s", 1, who, lambda: os.listdir(path))
        self.timed("stat, cold", "/s", count, who, stat)
        self.timed("unlink", "/s", count, who, unlink)
        shutil.rmtree(path)

    def large_files(self, who: Contestant) -> None:
        path, size = who.path / "large", self.size
        mib = size / MIB
        into = memoryview(mmap.mmap(-1, MIB))

        def write(step: int, sync: bool) -> None:
            with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
                part = self.data[:step]
                for _ in range(0, size, step):
                    os.write(fd, part)
                if sync:
                    os.fsync(fd)

        def read() -> None:
            with opened(path, os.O_RDONLY) as fd:
                while os.readv(fd, [into]):
                    pass

        def synced() -> None:
            with opened(who.path / "synced", os.O_WRONLY) as fd:
                for i in range(self.syncs):
                    os.pwrite(fd, self.data[:BLOCK], i * BLOCK)
                    os.fdatasync(fd)

        self.timed("4 KiB buffered writes", "MiB/s", mib, who, lambda: write(BLOCK, False))
        self.timed("sequential write, fsync", "MiB/s", mib, who, lambda: write(MIB, True))
        who.remount()
        self.timed("sequential read, cold", "MiB/s", mib, who, read)
        self.timed("sequential read, hot", "MiB/s", mib, who, read)
        self.timed("4 KiB write, fdatasync each", "/s", self.syncs, who, synced)
        path.unlink()

    def fio(self, who: Contestant) -> None:
        for line, mode, sync in (
            ("random 4 KiB write, fsync", "randwrite", True),
            ("random 4 KiB read", "randread", False),
        ):
            words = ["fio", "--name=bench", f"--directory={who.path}", f"--rw={mode}", "--bs=4k", "--ioengine=psync"]
            words += [f"--size={self.size // 4}", "--randseed=1", "--output-format=json"]
            words += ["--end_fsync=1"] if sync else ["--invalidate=1"]
            job = json.loads(run(*words))["jobs"][0]
            side = job["write" if sync else "read"]
            seconds = job["job_runtime"] / 1000 if sync else side["runtime"] / 1000
            self.units[line] = "/s"
            self.rates.setdefault(line, {}).setdefault(who.name, []).append(side["total_ios"] / max(seconds, 0.001))
        for left in who.path.glob("bench.*"):
            left.unlink()

    def applications(self, who: Contestant, repository: Path, archive: Path) -> None:
        clone, tree = who.path / "clone", who.path / "tree"
        self.timed(
            "git clone, no checkout", "/s", 1, who, lambda: run("git", "clone", "-qn", "--no-local", repository, clone)
        )
        self.timed("git checkout", "/s", 1, who, lambda: run("git", "checkout", "-q", "HEAD", cwd=clone))
        tree.mkdir()
        self.timed("untar", "/s", 1, who, lambda: run("tar", "xf", archive, "-C", tree))
        shutil.rmtree(clone)
        shutil.rmtree(tree)

    def postgres(self, who: Contestant) -> None:
        binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
        data, port = who.path / "pg", "55432"
        data.mkdir()
        shutil.chown(data, "postgres")
        env = os.environ | {"PGHOST": "/tmp", "PGPORT": port, "PGUSER": "postgres"}
        run(binaries / "initdb", "-D", data, "--no-sync", "-A", "trust", user="postgres")
        pg_ctl = [binaries / "pg_ctl", "-D", data, "-w"]
        run(*pg_ctl, "-l", data / "log", "-o", f"-p {port} -k /tmp", "start", user="postgres")
        try:
            run(binaries / "pgbench", "-i", "-q", "-s", "5", "postgres", env=env)
            out = run(binaries / "pgbench", "-c", "4", "-j", "2", "-T", "10", "postgres", env=env)
        finally:
            run(*pg_ctl, "-m", "fast", "stop", user="postgres")
        tps = next(float(line.split()[2]) for line in out.splitlines() if line.startswith("tps ="))
        self.units["pgbench, 4 clients"] = "tps"
        self.rates.setdefault("pgbench, 4 clients", {}).setdefault(who.name, []).append(tps)
        shutil.rmtree(data)

    def all(self, who: Contestant, repository: Path, archive: Path) -> None:
        self.small_files(who)
        self.large_files(who)
        self.fio(who)
        self.applications(who, repository, archive)
        if self.pgbench:
            self.postgres(who)

    def rows(self) -> list[dict[str, object]]:
        rows = []
        for line, by in self.rates.items():
            rates = {who: statistics.median(values) for who, values in by.items()}
            ratios = {who: rates["fusevol"] / rate for who, rate in rates.items() if who != "fusevol"}
            rows.append({"line": line, "unit": self.units[line], "rates": rates, "ratios": ratios})
        return rows


def make_source(base: Path, files: int) -> tuple[Path, Path]:
    """A repository and an archive with as many files of mixed sizes."""
    repository, archive = base / "repository", base / "archive.tar"
    run("git", "init", "-q", repository)
    for i in range(files):
        path = repository / f"dir{i % 50}" / f"file{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((f"line of file {i}\n" * (i * 37 % 1000 + 1)).encode())
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    run("git", "add", ".", cwd=repository)
    run("git", *who, "commit", "-qm", "all", cwd=repository)
    run("tar", "cf", archive, "--exclude=.git", "-C", repository, ".")
    return repository, archive


def show(rows: list[dict[str, object]], names: list[str]) -> None:
    others = [name for name in names if name != "fusevol"]
    print(f"{'':30}" + "".join(f"{name:>16}" for name in names) + "".join(f"{'/' + name:>10}" for name in others))
    for row in rows:
        rates, ratios = row["rates"], row["ratios"]
        cells = "".join(f"{rates[name]:>10,.1f} {row['unit']:<5}" for name in names)  # type: ignore[index]
        print(f"{row['line']:30}{cells}" + "".join(f"{ratios[name]:>10.2f}" for name in others))  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_mount", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("."), help="directory on the disk to measure (default: here)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="files and bytes, 1.0 for 5,000 files and 512 MiB")
    parser.add_argument("--no-juicefs", action="store_true", help="leave JuiceFS out")
    parser.add_argument("--encrypted", action="store_true", help="a volume in a pool that encrypts, too")
    parser.add_argument("--device", action="store_true", help="a volume in a pool on a loop device, too")
    parser.add_argument("--no-pgbench", action="store_true", help="leave PostgreSQL out")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the ratios, too")
    args = parser.parse_args()
    if os.geteuid():
        raise SystemExit("scripts/bench_mount: run it as root: it drops the kernel's caches between lines")
    kinds = [Contestant, Fusevol]
    kinds += [Encrypted] if args.encrypted else []
    kinds += [OnDevice] if args.device else []
    kinds += [] if args.no_juicefs else [JuiceFS]
    bench = Bench(args.scale, pgbench=not args.no_pgbench)
    base = Path(tempfile.mkdtemp(prefix="fusevol-bench-", dir=args.dir.absolute()))
    base.chmod(0o755)
    try:
        repository, archive = make_source(base, int(2000 * args.scale))
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            for kind in kinds:
                place = base / f"{kind.name}-{number}"
                place.mkdir()
                who = kind(place)
                # What another has left to be written, or deleted, is not for this one to wait for.
                drop_caches()
                try:
                    bench.all(who, repository, archive)
                finally:
                    who.close()
                    who.finish()
                shutil.rmtree(place)
        rows = bench.rows()
        if args.svg:
            args.svg.write_text(svg(rows, "How many times as fast a fusevol volume is"))
        if args.json:
            print(json.dumps({"rows": rows}))
        else:
            show(rows, [kind.name for kind in kinds])
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
