"""Volumes in an S3 store, mounted: as others, also with a cold cache, a lost cache, and a store that is away."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume, until
from tests.s3 import S3, configure


@pytest.fixture
def volume(bench: Bench, place: Path, s3: S3) -> Volume:
    """A mounted volume in a folder of the store of its own."""
    home = place / "home"
    configure(home, s3.parameters(uuid.uuid4().hex, timeout="5s"))
    return Volume(bench, home).create().mount()


def _cache(volume: Volume) -> Path:
    (found,) = (volume.home / "cache").iterdir()
    return found


def _durable(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())


def test_programs_work_and_find_it_all_again_on_another_machine(volume: Volume) -> None:
    volume.bench.shell(
        "git init -q repo; cd repo; for i in $(seq 30); do echo $i > file$i; done; git add .; "
        "git -c user.name=a -c user.email=a@b commit -q -m one; git fsck --strict",
        cwd=volume.path,
    )
    big = random.Random(1).randbytes(20 << 20)
    _durable(volume.path / "big", big)
    volume.fusevol("snapshot", f"{volume.name}@before")
    (volume.path / "big").unlink()
    volume.umount()
    # A machine that has the same pool, and neither records nor cache.
    shutil.rmtree(_cache(volume))
    for path in volume.home.glob("fusevol.db*"):
        path.unlink()
    volume.fusevol("import", volume.name)
    volume.mount()
    volume.fusevol("restore", f"{volume.name}@before")
    assert (volume.path / "big").read_bytes() == big
    assert "nothing to commit" in volume.bench.run("git", "status", cwd=volume.path / "repo")
    volume.umount()
    volume.check()


def test_after_kill_9_all_that_was_synced_is_there(volume: Volume) -> None:
    for number in range(20):
        _durable(volume.path / f"file{number}", b"%d" % number * 5000)
    volume.kill()
    volume.mount()
    for number in range(20):
        assert (volume.path / f"file{number}").read_bytes() == b"%d" % number * 5000
    volume.umount()
    volume.check()


def test_a_cache_that_rots_does_no_harm(volume: Volume) -> None:
    data = random.Random(2).randbytes(5 << 20)
    _durable(volume.path / "file", data)
    volume.umount()
    blocks = _cache(volume) / "blocks"
    with blocks.open("r+b") as file:
        for at in range(0, blocks.stat().st_size, 4096 * 3):
            file.seek(at)
            file.write(b"rotten")
    volume.mount()
    assert (volume.path / "file").read_bytes() == data
    volume.umount()
    volume.check()


def test_what_is_cached_is_there_while_the_store_is_away_and_a_sync_says_that_it_failed(volume: Volume, s3: S3) -> None:
    data = random.Random(3).randbytes(2 << 20)
    _durable(volume.path / "file", data)
    with s3.silent():
        assert (volume.path / "file").read_bytes() == data
        (volume.path / "new").write_bytes(b"new")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            _durable(volume.path / "new", b"newer")
    # What failed was not acknowledged; whether the volume goes on, or is to be mounted anew, it says itself.
    volume.fusevol("umount", volume.name, status=None)
    if volume.mounted:
        volume.kill()
    volume.mount()
    assert (volume.path / "file").read_bytes() == data
    _durable(volume.path / "new", b"newest")
    volume.umount()
    volume.check()


def test_while_the_store_is_away_only_those_wait_who_need_something_of_it(volume: Volume, s3: S3) -> None:
    names = [f"file{number}" for number in range(2000)]
    (volume.path / "d").mkdir()
    for number, name in enumerate(names):
        (volume.path / "d" / name).write_bytes(b"%08d" % number * 150)
    (volume.path / "hot").write_bytes(b"hot" * 100_000)
    volume.fusevol("snapshot", f"{volume.name}@before")
    for name in names:
        os.utime(volume.path / "d" / name, (1, 1))
    volume.umount()
    shutil.rmtree(_cache(volume))
    volume.mount()
    old = volume.path / ".fusevol/snapshots/before"
    assert (old / "hot").stat().st_size == 300_000
    assert (volume.path / "hot").read_bytes() == b"hot" * 100_000
    # So that it is known to have all of the live tree.
    assert {os.stat(volume.path / "d" / name).st_mtime for name in names} == {1}
    (volume.path / "d" / names[-1]).rename(volume.path / "moved")
    (volume.path / "new").write_bytes(b"new")
    with ThreadPoolExecutor() as threads:
        with s3.silent():
            # Their inodes are in the snapshot alone, and in no cache.
            contents = threads.submit(lambda: [(old / "d" / name).read_bytes() for name in names])
            until(lambda: _waiting(volume), "one of them to be waited for")
            for number in range(100):
                assert os.stat(volume.path / "d" / names[number]).st_mtime == 1
                assert (volume.path / "hot").read_bytes() == b"hot" * 100_000
                (volume.path / f"new{number}").write_bytes(b"new")
                (volume.path / "d" / names[number]).rename(volume.path / f"moved{number}")
            assert _waiting(volume), "it had the answer, or an error, before all this was through"
        assert contents.result() == [b"%08d" % number * 150 for number in range(len(names))]
    volume.umount()
    volume.check()


def _waiting(volume: Volume) -> bool:
    """Whether a request is being served that has been for longer than those of a store that answers."""
    requests = json.loads((volume.path / ".fusevol/requests").read_bytes())
    return any(request["age"] > 0.2 for request in requests)


def test_deleting_a_volume_deletes_its_cache(volume: Volume) -> None:
    volume.umount()
    cache = _cache(volume)
    volume.fusevol("rm", volume.name)
    assert not cache.exists()


def test_a_store_that_is_not_there_is_an_error_in_a_line(bench: Bench, place: Path) -> None:
    home = place / "home"
    parameters = {
        "url": "s3://nowhere/x",
        "config": {"endpoint": "http://127.0.0.1:1", "region": "x", "access_key_id": "a", "secret_access_key": "b"},
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 0, "retry_timeout": 1},
    }
    configure(home, parameters)
    said = Volume(bench, home).refused("create", "web")
    assert "http://127.0.0.1:1: Connection refused" in said
    assert Volume(bench, home).fusevol("ls", "--json") == "[]\n"
