"""Files in place of devices."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

MIB = 1 << 20


@pytest.fixture
def make_device(tmp_path: Path) -> Callable[[int], Path]:
    """A function that makes an empty one of so many MiB."""

    def make(mebibytes: int) -> Path:
        path = tmp_path / f"device{len(os.listdir(tmp_path))}"
        path.touch()
        os.truncate(path, mebibytes * MIB)
        return path

    return make


@pytest.fixture
def device(make_device: Callable[[int], Path]) -> Path:
    """An empty one of 64 MiB."""
    return make_device(64)
