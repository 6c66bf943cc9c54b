"""A daemon for one test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that asks no engine, and soon takes away mounts that nobody uses."""
    with Daemon(tmp_path, "--stale-after", "0.5") as running:
        yield running
