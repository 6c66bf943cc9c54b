"""Processes that do everything on one device at once, and are killed now and then, find what was acknowledged."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.device.tables import verify
from tests.e2e.harness import seed
from tests.e2e.loop import loop_device

ROOT = Path(__file__).parents[2]


@pytest.mark.limit(600)
@pytest.mark.parametrize(
    ("workers", "kills"), [(3, 8), pytest.param(4, 300, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_whoever_is_killed_finds_what_was_acknowledged(tmp_path: Path, workers: int, kills: int) -> None:
    choose = random.Random(seed())
    with loop_device(tmp_path / "image", 192) as device:

        def start(number: int) -> subprocess.Popen[bytes]:
            words = [str(device), f"v{number}", str(tmp_path / f"journal{number}"), str(choose.randrange(1 << 30))]
            with open(tmp_path / f"said{number}", "ab") as said:
                return subprocess.Popen(
                    [sys.executable, "-m", "tests.device.worker", *words], cwd=ROOT, stdout=said, stderr=said,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                )  # fmt: skip

        def end(number: int) -> None:
            running[number].kill()
            if running[number].wait() != -9:
                raise AssertionError((tmp_path / f"said{number}").read_text())

        running = [start(number) for number in range(workers)]
        try:
            for count in range(kills):
                time.sleep(choose.random() * 2)
                end(number := choose.randrange(workers))
                if count % 20 == 7:
                    for other in range(workers):
                        if other != number:
                            end(other)
                    print(verify(device))
                    running = [start(number) for number in range(workers)]
                else:
                    running[number] = start(number)
        finally:
            for process in running:
                process.kill()
                process.wait()
        verify(device)
    for number in range(workers):
        assert (tmp_path / f"said{number}").read_text() == ""
        print(len((tmp_path / f"journal{number}").read_text().splitlines()))
