"""Every backend and every wrapper keeps the contract."""

import os
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from fusevol.backends import open_backend
from fusevol.backends.base import Backend
from fusevol.backends.cache import LocalCache
from fusevol.backends.device import DeviceBackend
from fusevol.backends.encryption import EncryptedBackend, Key
from fusevol.backends.file import FileBackend
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.object import ObjectBackend
from fusevol.backends.wrappers.counting import CountingBackend
from fusevol.backends.wrappers.faults import FaultyBackend, delay
from fusevol.backends.wrappers.recording import RecordingBackend
from fusevol.testing.backends import BackendContract, Reopen
from tests.s3 import S3


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend()


@pytest.mark.parametrize(
    "wrap",
    [
        FaultyBackend,
        RecordingBackend,
        CountingBackend,
        lambda inner: FaultyBackend(inner, [delay(call, seconds=0) for call in ("read", "write", "flush")]),
        lambda inner: RecordingBackend(CountingBackend(FaultyBackend(inner))),
    ],
    ids=["faults", "recording", "counting", "delayed", "stack"],
)
class TestWrappers(BackendContract):
    @pytest.fixture
    def backend(self, wrap: Callable[[Backend], Backend]) -> Backend:
        return wrap(MemoryBackend())


class TestObjectBackendInMemory(BackendContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def backend(self, store: MemoryStore) -> Backend:
        return ObjectBackend(store=store)

    @pytest.fixture
    def reopen(self, store: MemoryStore) -> Reopen:
        return lambda: ObjectBackend(store=store)


class TestObjectBackendInADirectory(BackendContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        backend = ObjectBackend(f"file://{tmp_path}/store", prefix="pre/fix")
        yield backend
        await backend.aclose()

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda: ObjectBackend(f"file://{tmp_path}/store", prefix="pre/fix")


class TestFileBackend(BackendContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        backend = FileBackend(tmp_path / "store")
        yield backend
        await backend.aclose()

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda: FileBackend(tmp_path / "store")


class TestDeviceBackend(BackendContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda: DeviceBackend(tmp_path / "device")

    @pytest.fixture
    async def backend(self, tmp_path: Path, reopen: Reopen) -> AsyncIterator[Backend]:
        (tmp_path / "device").touch()
        os.truncate(tmp_path / "device", 256 << 20)
        backend = reopen()
        yield backend
        await backend.aclose()


@pytest.mark.slow
class TestObjectBackendOnS3(BackendContract):
    @pytest.fixture
    def prefix(self) -> str:
        return uuid.uuid4().hex

    @pytest.fixture
    def backend(self, s3: S3, prefix: str) -> Backend:
        return open_backend("object", **s3.parameters(prefix))

    @pytest.fixture
    def reopen(self, s3: S3, prefix: str) -> Reopen:
        return lambda: open_backend("object", **s3.parameters(prefix))


@pytest.mark.parametrize("capacity", [1 << 30, 1 << 18], ids=["large", "small"])
class TestLocalCache(BackendContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path, capacity: int) -> AsyncIterator[Backend]:
        backend = LocalCache(lambda: ObjectBackend(f"file://{tmp_path}/store"), tmp_path / "cache", capacity)
        yield backend
        await backend.aclose()

    @pytest.fixture
    def reopen(self, tmp_path: Path, capacity: int) -> Reopen:
        return lambda: LocalCache(lambda: ObjectBackend(f"file://{tmp_path}/store"), tmp_path / "cache", capacity)


@pytest.mark.parametrize("remote", [False, True], ids=["files", "cached objects"])
class TestEncryptedBackend(BackendContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path, remote: bool) -> Reopen:
        def opened() -> Backend:
            place = tmp_path / "store"
            cached = partial(LocalCache, lambda: ObjectBackend(f"file://{place}"), tmp_path / "cache", 1 << 30)
            return EncryptedBackend(cached() if remote else FileBackend(place), Key(bytes(range(32))))

        return opened

    @pytest.fixture
    async def backend(self, reopen: Reopen) -> AsyncIterator[Backend]:
        backend = reopen()
        yield backend
        await backend.aclose()
