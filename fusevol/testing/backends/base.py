"""What the tests of backends have in common."""

import random
from collections.abc import Awaitable, Callable

import pytest

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Backend

__all__ = ["ALIGN", "AROUND", "BLOCK", "CALLS", "KIB", "MIB", "Reopen", "Rules", "get", "noise", "put"]

KIB = 1024
MIB = 1024 * KIB
AROUND = 32 * KIB
#: Where discards take effect at the latest: a multiple of every page and block size in use.
ALIGN = 64 * KIB
#: What a block can be at most.
BLOCK = 4 * KIB

Reopen = Callable[[], Backend]

#: One of every call that must fail for a volume that is not there.
CALLS: dict[str, Callable[[Backend, str], Awaitable[object]]] = {
    "delete": lambda backend, name: backend.delete(name),
    "used_size": lambda backend, name: backend.used_size(name),
    "read": lambda backend, name: backend.read(name, BLOCK, 0),
    "read_around": lambda backend, name: backend.read_around(name, BLOCK, 0, AROUND),
    "write": lambda backend, name: backend.write(name, b"x" * 4096, 0),
    "flush": lambda backend, name: backend.flush(name),
    "discard": lambda backend, name: backend.discard(name, 4096, 0),
    "get_manifest": lambda backend, name: backend.get_manifest(name),
    "put_manifest": lambda backend, name: backend.put_manifest(name, b"m", NO_VERSION),
}


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress and are the same every time."""
    return random.Random(seed).randbytes(size)


async def put(backend: Backend, data: Buffer, offset: int) -> None:
    """Write all of `data`, going on after short writes."""
    view = memoryview(data)
    while len(view):
        written = await backend.write("v", view, offset)
        assert 0 < written <= len(view)
        view, offset = view[written:], offset + written


async def get(backend: Backend, size: int, offset: int) -> bytes:
    """Read, and check that what does not wait says the same or nothing, and `read_around` the same and perhaps more."""
    data = bytes(await backend.read("v", size, offset))
    assert backend.read_nowait("v", size, offset) in (None, data)
    assert backend.read_kept("v", size, offset) in (None, data)
    start, around = await backend.read_around("v", size, offset, AROUND)
    assert offset - offset % AROUND <= start <= offset
    assert start + len(around) <= -(-(offset + size) // AROUND) * AROUND
    assert bytes(around[offset - start :][:size]) == data
    return data


class Rules:
    """Tests that a backend must pass: fixtures."""

    @pytest.fixture
    def reopen(self) -> Reopen | None:
        """A function that makes another instance on the same store; None where there can be none."""
        return None

    @pytest.fixture
    async def volume(self, backend: Backend) -> Backend:
        """The backend, with a volume `v`."""
        await backend.create("v")
        return backend

    @pytest.fixture
    async def bytewise(self, volume: Backend) -> Backend:
        """The same, where any range will do."""
        if volume.traits.block > 1:
            pytest.skip("whole blocks only")
        return volume
