"""Random calls on a mounted volume have the results that they have on ext4, and leave the same tree behind.

The calls are those of root and follow links: they are made in processes that see nothing but the directory they are
for (confined.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from fusevol.fs.clock import now
from tests.mount.harness import Volume, mounted_volume, reference_directory, work_directory
from tests.mount.servers import ROOT, needs_fuse, until

pytestmark = needs_fuse

#: The first of the seeds; all others follow from it.
FIRST = int(os.environ.get("FUSEVOL_SEED", "0"))
#: Seeds that share a volume, and how many steps each; scripts/soak has the slow ones.
GROUPS = [
    pytest.param(range(FIRST, FIRST + 4), 1200, id="some"),
    *(
        pytest.param(range(start, start + 16), 3000, id=f"{start}...", marks=pytest.mark.slow)
        for start in range(FIRST + 4, FIRST + 100, 16)
    ),
]
#: Seconds that a process may take, for one that hangs.
LIMIT = 120.0


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    """What the calls must not reach, were they not confined: the files that absolute links most often lead to."""
    yield
    null, temporary = os.lstat("/dev/null"), os.lstat("/tmp")
    assert (null.st_mode, null.st_uid, null.st_gid, null.st_rdev) == (0o020666, 0, 0, os.makedev(1, 3))
    assert (temporary.st_mode, temporary.st_uid, temporary.st_gid) == (0o041777, 0, 0)


@pytest.fixture
def volume() -> Iterator[Volume]:
    with mounted_volume() as mounted:
        yield mounted


@pytest.fixture
def reference() -> Iterator[Path]:
    with reference_directory(own=True) as directory:
        yield directory


class Confined:
    """Processes that make calls in directories, each in one; `lines` are what they said. Ended when it is left."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(self, directory: Path, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.mount.confined", str(directory), *map(str, arguments)]
        output = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, errors="replace", cwd=ROOT
        )
        self._running.append(process)
        return process

    def lines(self, process: subprocess.Popen[str]) -> list[str]:
        said, trouble = process.communicate(timeout=LIMIT)
        assert not trouble, said[-2000:] + trouble
        assert process.returncode == 0, said[-2000:]
        return said.splitlines()

    def run(self, directory: Path, *arguments: object) -> list[str]:
        return self.lines(self.start(directory, *arguments))

    def end(self) -> None:
        for process in self._running:
            process.kill()


@pytest.fixture
def confined() -> Iterator[Confined]:
    found = Confined()
    try:
        yield found
    finally:
        found.end()


def first_difference(ours: list[str], theirs: list[str], before: int = 12) -> str:
    """Where two texts part, with what comes before; nothing if they do not."""
    for number, (mine, other) in enumerate(zip_longest(ours, theirs, fillvalue="nothing more")):
        if mine != other:
            calls = [line for line in ours[:number] if line[:1].isdigit()]
            return "\n".join([*calls[-before:], f"ours:   {mine}", f"theirs: {other}"])
    return ""


def test_no_path_and_no_symbolic_link_leads_a_confined_process_out(volume: Volume, confined: Confined) -> None:
    with work_directory() as outside:
        canary = outside / "canary"
        canary.write_text("sings")
        canary.chmod(0o640)
        inside = volume.mountpoint / "inside"
        inside.mkdir()
        beside = volume.mountpoint / "beside"
        beside.write_text("next to it")
        before = [os.stat(path) for path in (canary, outside, beside, volume.mountpoint)]
        roots = ["/", "..", "/..", "../..", "/../../.."]
        nowhere = [
            str(canary), "../" * 20 + str(canary)[1:], str(outside), "/../beside", "../beside", str(beside),
            "/proc/self/root", "/proc/self/fd/1", "/proc/1/cwd", "/work", "/var/tmp",
        ]  # fmt: skip
        said = confined.run(inside, "probe", *roots, *nowhere)
        assert [os.stat(path) for path in (canary, outside, beside, volume.mountpoint)] == before
        assert canary.read_text() == "sings"
    results = dict(line.rsplit(": ", 1) for line in said)
    for number, path in enumerate([*roots, *nowhere]):
        expected = "the root" if path in roots else "ENOENT"
        assert {results[path], results[f"/link {number}"]} == {expected}, path
    changes = {result for title, result in results.items() if title.split(" ")[0] in ("chmod", "chown", "unlink")}
    assert changes == {"ENOENT"}


@pytest.mark.parametrize(("seeds", "steps"), GROUPS)
async def test_random_calls_have_the_results_that_they_have_on_ext4_and_a_mount_later_all_is_as_they_left_it(
    volume: Volume, reference: Path, confined: Confined, seeds: range, steps: int
) -> None:
    for seed in seeds:
        print(f"FUSEVOL_SEED={seed}")
        running = []
        for parent in (volume.mountpoint, reference):
            directory = parent / f"seed {seed}"
            directory.mkdir()
            running.append(confined.start(directory, "calls", seed, steps))
        ours, theirs = (confined.lines(process) for process in running)
        assert len(ours) > steps
        assert not (difference := first_difference(ours, theirs)), difference
    before = confined.run(volume.mountpoint, "tree")
    assert len(before) > 20
    volume.unmount()
    await volume.check()
    volume.mount()
    after = confined.run(volume.mountpoint, "tree")
    assert not (difference := first_difference(before, after)), difference


def test_a_chown_that_changes_nothing_leaves_the_time_of_change_that_the_kernel_gave_it(volume: Volume) -> None:
    # The kernel does not send it again: with a time of our own, the file would look changed anew a mount later.
    file = volume.mountpoint / "file"
    file.touch()
    file.stat()  # so that it need not ask for the attributes first
    assert volume.process is not None
    chown = threading.Thread(target=os.chown, args=(file, -1, -1))
    volume.process.send_signal(signal.SIGSTOP)
    try:
        chown.start()
        where = Path(f"/proc/self/task/{chown.native_id}/wchan")
        until(lambda: where.read_text() == "request_wait_answer", "the kernel to ask for it")
        # By the exact clock: the kernel's time is not behind the last exact one that it gave any file of the machine.
        asked = time.time_ns()
        until(lambda: now() > asked, "the clock to go on")
    finally:
        volume.process.send_signal(signal.SIGCONT)
    chown.join(LIMIT)
    before = file.stat().st_ctime_ns
    assert before <= asked
    volume.unmount()
    volume.mount()
    assert file.stat().st_ctime_ns == before
