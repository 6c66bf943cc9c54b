"""Several processes at the same files and directories: locks, appends, renames, listings, programs being run."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume, seed

ROOT = Path(__file__).parents[2]

COUNT = """
import fcntl, os, sys
path, kind, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
lock = getattr(fcntl, kind)
fd = os.open(path, os.O_RDWR)
for _ in range(times):
    lock(fd, fcntl.LOCK_EX)
    number = int(os.pread(fd, 20, 0))
    os.pwrite(fd, b"%020d" % (number + 1), 0)
    lock(fd, fcntl.LOCK_UN)
"""

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""

TRY = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("refused")
else:
    print("taken")
"""

APPEND = """
import os, random, sys
path, worker, lines, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed * 1000 + worker)
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
for number in range(lines):
    line = b"%d %d " % (worker, number) + b"%c" % (97 + worker) * rng.choice((1, 10, 100, 4096, 9000)) + b"\\n"
    assert os.write(fd, line) == len(line)
    if rng.random() < 0.05:
        os.fsync(fd)
"""

RENAME = """
import errno, os, random, sys
from tests.mount.worlds import EXCHANGE, NOREPLACE, renameat2
root, worker, times, seed = os.fsencode(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed * 1000 + worker)
expected = {errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY, errno.ENOTDIR}
for _ in range(times):
    old, new = (b"%s/%d/%d" % (root, rng.randrange(3), rng.randrange(20)) for _ in range(2))
    if rng.random() < 0.1:
        old, new = (b"%s/%d" % (root, rng.randrange(3)) for _ in range(2))
    if rng.random() < 0.1:
        new += b"/in it"
    try:
        renameat2(old, new, rng.choice((EXCHANGE, NOREPLACE)))
    except OSError as error:
        assert error.errno in expected, error
"""

CHURN = """
import os, sys, threading
root, worker = sys.argv[1], sys.argv[2]
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
number = 0
while not ended.is_set() or number < 400:
    os.close(os.open(f"{root}/{worker} {number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    if number >= 100:
        os.unlink(f"{root}/{worker} {number - 100}")
    number += 1
"""


def start(bench: Bench, script: str, *arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    words = ("-W", "ignore", "-c", script, *map(str, arguments))
    return bench.start(sys.executable, *words, env={"PYTHONPATH": os.fspath(ROOT)}, stdin=stdin)


def finish(bench: Bench, running: list[subprocess.Popen[str]]) -> None:
    for process in running:
        said = bench.finish(process)
        assert process.returncode == 0, said


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_counter_under_a_lock_misses_no_process_and_the_lock_of_a_killed_one_is_free(
    volume: Volume, bench: Bench, kind: str
) -> None:
    file = volume.path / "counter"
    file.write_text("0" * 20)
    finish(bench, [start(bench, COUNT, file, kind, 150) for _ in range(4)])
    assert int(file.read_text()) == 600
    holder = start(bench, HOLD, file, kind, stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert bench.run(sys.executable, "-c", TRY, file, kind) == "refused\n"
    holder.kill()
    bench.finish(holder)
    assert bench.run(sys.executable, "-c", TRY, file, kind) == "taken\n"


def test_lines_that_many_processes_append_are_all_there_and_whole(volume: Volume, bench: Bench) -> None:
    log, workers, lines, chosen = volume.path / "log", 6, 150, seed()
    log.touch()
    finish(bench, [start(bench, APPEND, log, worker, lines, chosen) for worker in range(workers)])
    for remounted in (False, True):
        if remounted:
            volume.umount()
            volume.mount()
        found: dict[int, list[int]] = {worker: [] for worker in range(workers)}
        for line in log.read_text().splitlines():
            worker, number, rest = line.split(" ")
            assert set(rest) == {chr(97 + int(worker))}, f"line {number} of {worker} is torn"
            assert len(rest) in (1, 10, 100, 4096, 9000), f"line {number} of {worker} is torn"
            found[int(worker)].append(int(number))
        assert found == {worker: list(range(lines)) for worker in range(workers)}


def test_no_file_is_lost_or_doubled_when_many_processes_rename_and_exchange_them(volume: Volume, bench: Bench) -> None:
    storm, chosen = volume.path / "storm", seed()
    for directory in range(3):
        (storm / str(directory)).mkdir(parents=True)
        for number in range(0, 20, 2):
            path = storm / str(directory) / str(number)
            if number % 8 == 6:
                path.mkdir()
            else:
                path.write_text(f"{directory} {number}")

    def everything() -> tuple[list[str], int]:
        files = [path for path in storm.rglob("*") if path.is_file()]
        assert all(path.stat().st_nlink == 1 for path in files)
        for path in [storm, *storm.rglob("*")]:
            if path.is_dir():
                assert path.stat().st_nlink == 2 + sum(entry.is_dir() for entry in path.iterdir()), path
        return sorted(path.read_text() for path in files), sum(path.is_dir() for path in storm.rglob("*"))

    before = everything()
    assert len(before[0]) == 24
    finish(bench, [start(bench, RENAME, storm, worker, 800, chosen) for worker in range(5)])
    assert everything() == before
    volume.umount()
    volume.check()
    volume.mount()
    assert everything() == before


def test_a_listing_has_each_name_that_stays_once_while_others_come_and_go(volume: Volume, bench: Bench) -> None:
    directory = volume.path / "many"
    directory.mkdir()
    names = [f"stays {number}" for number in range(5000)]
    random.Random(seed()).shuffle(names)
    for name in names[:2500]:
        (directory / name).touch()
    churning = [start(bench, CHURN, directory, worker, stdin=subprocess.PIPE) for worker in range(2)]
    # Among those that come and go, so that they lie between them in a listing.
    for name in names[2500:]:
        (directory / name).touch()
    expected = sorted(names)
    for _ in range(12):
        assert sorted(name for name in os.listdir(directory) if name.startswith("stays")) == expected
    finish(bench, churning)
    left = os.listdir(directory)
    assert len(left) == len(set(left)) == 5200


def test_a_program_is_not_written_while_it_runs_nor_run_while_it_is_written(volume: Volume, bench: Bench) -> None:
    program = volume.path / "program"
    shutil.copy2("/bin/sleep", program)
    with program.open("ab"), pytest.raises(OSError, match="busy") as raised:
        bench.start(program, "60")
    assert raised.value.errno == errno.ETXTBSY
    running = bench.start(program, "60")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(OSError, match="busy") as raised:
            os.open(program, flags)
        assert raised.value.errno == errno.ETXTBSY
    with pytest.raises(OSError, match="busy"):
        os.truncate(program, 0)
    assert program.read_bytes() == Path("/bin/sleep").read_bytes()
    # It may be replaced, and goes on.
    program.unlink()
    program.write_text("#!/bin/sh\n")
    assert running.poll() is None
    running.kill()
    bench.finish(running)
