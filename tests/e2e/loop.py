"""Block devices for tests: loop devices, on files of a disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.device.tables import verify

MIB = 1 << 20


@contextmanager
def loop_device(image: Path, mebibytes: int) -> Iterator[Path]:
    """An empty one, whose file is made; it goes when nothing uses it any more."""
    image.touch()
    os.truncate(image, mebibytes * MIB)
    command = ["losetup", "--find", "--show", "--direct-io=on", os.fspath(image)]
    loop = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    try:
        yield loop
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@contextmanager
def pool_on_loop_device(place: Path, mebibytes: int) -> Iterator[Path]:
    """One that the pool `default` of the state directory `place/home` is on; in the end its tables fit together."""
    with loop_device(place / "image", mebibytes) as device:
        home = place / "home"
        home.mkdir()
        (home / "config.toml").write_text(f'[pools.default]\nbackend = "device"\npath = "{device}"\n')
        yield device
        verify(device)
