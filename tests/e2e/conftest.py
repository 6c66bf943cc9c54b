"""What every test with real programs has: a place on a disk, a bench to run programs on, and a volume."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume

#: Seconds after which a test's mounts are aborted, so that nothing hangs; @pytest.mark.limit(seconds) sets another.
LIMIT = 120.0
#: The programs these tests run. scripts/setup installs them.
NEEDED = ("fio", "getfacl", "getfattr", "git", "mkfs.ext4", "rsync", "setfacl", "setfattr", "stress-ng")


@pytest.fixture(autouse=True, scope="session")
def _programs() -> None:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    assert not missing, f"not installed: {', '.join(missing)}; scripts/setup installs them"
    assert os.path.exists("/dev/fuse"), "these tests need /dev/fuse"
    assert os.geteuid() == 0, "these tests need root: they mount, and run programs as other users"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The test's directory: on a disk, where direct writes and a full device are what they are."""
    types = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    under = [(len(words[1]), words[2]) for words in types if tmp_path.is_relative_to(words[1])]
    if max(under)[1] not in ("tmpfs", "ramfs"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="fusevol-e2e-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def bench(place: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Runs programs and ends what is left of them."""
    marker = request.node.get_closest_marker("limit")
    found = Bench(place, marker.args[0] if marker else LIMIT)
    with found.watched():
        yield found


@pytest.fixture
def created(bench: Bench, place: Path) -> Volume:
    """A new volume in a state directory of its own, not mounted."""
    return Volume(bench, place / "home").create()


@pytest.fixture
def volume(created: Volume) -> Volume:
    """A new volume, mounted."""
    return created.mount()
