"""Rounds of: load, kill -9 of the process that serves the mount, mount again, and see that nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.e2e.harness import FUSEVOL, Volume, until
from tests.e2e.recorder import KINDS, acknowledged, sync_directory, verify

__all__ = ["Round", "Rounds"]

ROOT = Path(__file__).parents[2]


class Round(NamedTuple):
    """How a round went. steps: acknowledged by all its writers; problems: what was lost; seconds: of the mount."""

    number: int
    steps: int
    seconds: float
    killed_again: bool
    problems: list[str]


class _Writer(NamedTuple):
    kind: str
    directory: Path
    acknowledged: Path
    seed: int

    def lost(self) -> list[str]:
        return verify(self.kind, self.directory, self.seed, acknowledged(self.acknowledged))


class Rounds:
    """Rounds on one volume, which is mounted; `elsewhere` is a directory on another filesystem."""

    def __init__(self, volume: Volume, elsewhere: Path, seed: int) -> None:
        self._volume = volume
        self._elsewhere = elsewhere
        self._rng = random.Random(seed)
        self._seed = seed % 1_000_000
        self._last: list[_Writer] = []
        self._number = 0

    def _writer(self, kind: str, copy: int) -> _Writer:
        directory = self._volume.path / f"round-{self._number}" / f"{kind}-{copy}"
        directory.mkdir(parents=True)
        seed = self._seed * 1000 + self._number * 10 + copy
        return _Writer(kind, directory, self._elsewhere / f"{self._number}-{kind}-{copy}", seed)

    def run(self) -> Round:
        """One round. Problems are reported, failures of commands raised."""
        volume, bench = self._volume, self._volume.bench
        writers = [self._writer(kind, copy) for kind in KINDS for copy in range(1 if kind == "snapshot" else 2)]
        # The names themselves must be there for what is written below them to be found.
        sync_directory(volume.path)
        processes = [
            bench.start(sys.executable, "-m", "tests.e2e.recorder", writer.kind, writer.directory, writer.acknowledged,
                        str(writer.seed), cwd=ROOT)
            for writer in writers
        ]  # fmt: skip
        until(lambda: all(acknowledged(w.acknowledged) >= 0 for w in writers), "every writer to be at work")
        time.sleep(self._rng.uniform(0, 1.2))
        volume.kill()
        killed_again = self._rng.random() < 0.25
        if killed_again:
            self._kill_while_mounting()
        started = time.monotonic()
        volume.mount()
        seconds = time.monotonic() - started
        problems = [problem for writer in [*writers, *self._last] for problem in writer.lost()]
        for process in processes:
            said = bench.finish(process)
            if process.returncode != 3:
                problems.append(f"a writer ended with status {process.returncode}: {said}")
        steps = sum(acknowledged(writer.acknowledged) + 1 for writer in writers)
        volume.check()
        self._last = [writer for writer in writers if writer.kind != "snapshot"]
        self._number += 1
        return Round(self._number, steps, seconds, killed_again, [f"round {self._number}: {p}" for p in problems])

    def _kill_while_mounting(self) -> None:
        """Mount, and end the process that is to serve the mount at some moment of its start."""
        volume, bench = self._volume, self._volume.bench
        mounting = bench.start(FUSEVOL, "mount", volume.name, volume.path, env={"FUSEVOL_HOME": str(volume.home)})
        until(lambda: bench.servers() or mounting.poll() is not None, "the new process")
        time.sleep(self._rng.uniform(0, 0.6))

        def gone() -> bool:
            # One that was just being forked is not among those that were killed first.
            for pid in bench.servers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not bench.servers()

        gone()
        bench.finish(mounting)
        until(gone, "the killed process to be gone")
