"""The manifest of the file backend, which every flush asks for: whatever becomes of the file, the answer is true."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fusevol.backends.base import NO_VERSION, Manifest
from fusevol.backends.file import FileBackend, manifest_file
from fusevol.errors import CorruptData, VolumeNotFound


@pytest.fixture(params=[True, False], ids=["kept open", "read anew"])
async def backend(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FileBackend]:
    """A store with a volume whose manifest was put, and asked for."""
    monkeypatch.setattr(manifest_file, "overwrites_in_place", lambda path: request.param)
    backend = FileBackend(tmp_path)
    await backend.create("v")
    await backend.put_manifest("v", b"one", NO_VERSION)
    assert (await backend.get_manifest("v")).data == b"one"
    yield backend
    await backend.aclose()


async def test_what_another_process_put_is_seen(backend: FileBackend) -> None:
    version = (await backend.get_manifest("v")).version
    for data in (b"two", b"six", b"ten"):
        other = FileBackend(backend.path)
        version = await other.put_manifest("v", data, version)
        await other.aclose()
        assert await backend.get_manifest("v") == Manifest(data, version)


def deleted(path: Path) -> None:
    shutil.rmtree(path)


def moved(path: Path) -> None:
    path.rename(path.parent / ".deleted-0")


@pytest.mark.parametrize("goes", [deleted, moved])
async def test_a_volume_that_is_gone_is_seen_to_be(backend: FileBackend, goes: Callable[[Path], None]) -> None:
    goes(backend.path / "v")
    with pytest.raises(VolumeNotFound):
        await backend.get_manifest("v")


async def test_another_volume_of_the_same_name_has_its_own(backend: FileBackend) -> None:
    moved(backend.path / "v")
    other = FileBackend(backend.path)
    await other.create("v")
    assert await backend.get_manifest("v") == Manifest(b"", NO_VERSION)
    version = await other.put_manifest("v", b"new", NO_VERSION)
    assert await backend.get_manifest("v") == Manifest(b"new", version)


async def test_damage_is_seen_where_it_is_written_over(backend: FileBackend) -> None:
    path = backend.path / "v/manifest"
    with path.open("r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(1, 1))  # as it has another time from any write that is not of the very same moment
    with pytest.raises(CorruptData, match="checksum"):
        await backend.get_manifest("v")


async def test_many_volumes_have_few_files_open(backend: FileBackend) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        await backend.create(f"v{number}")
        await backend.put_manifest(f"v{number}", b"one", NO_VERSION)
        await backend.get_manifest(f"v{number}")
    assert len(os.listdir("/proc/self/fd")) - before < 10


async def test_a_volume_that_is_deleted_or_released_has_no_file_open(backend: FileBackend) -> None:
    def held() -> list[str]:
        links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return [name for link in links if link.is_symlink() and (name := os.readlink(link)).startswith(str(manifest))]

    manifest = backend.path / "v/manifest"

    # Open, so that its inode cannot become another manifest's.
    assert len(held()) == backend._manifests["v"]._keeps
    backend.release("v")
    assert held() == []
    assert (await backend.get_manifest("v")).data == b"one"
    await backend.delete("v")
    assert held() == []
