"""Wrapper: a backend that forwards every call to the one inside."""

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Capacity, Manifest

__all__ = ["Wrapper"]


class Wrapper(Backend):
    """Base of all wrappers; override what is to be different.

    Closing a wrapper closes the backend inside.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.traits = inner.traits

    async def create(self, volume_id: str) -> None:
        """Forward."""
        await self.inner.create(volume_id)

    async def delete(self, volume_id: str) -> None:
        """Forward."""
        await self.inner.delete(volume_id)

    async def list(self) -> list[str]:
        """Forward."""
        return await self.inner.list()

    async def used_size(self, volume_id: str) -> int:
        """Forward."""
        return await self.inner.used_size(volume_id)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Forward."""
        return await self.inner.read(volume_id, size, offset)

    def release(self, volume_id: str) -> None:
        """Forward."""
        self.inner.release(volume_id)

    def capacity(self, volume_id: str) -> Capacity | None:
        """Forward."""
        return self.inner.capacity(volume_id)

    async def read_stored(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Forward, as a read like any other."""
        return await self.read(volume_id, size, offset)

    def doubt(self, volume_id: str, size: int, offset: int) -> None:
        """Forward."""
        self.inner.doubt(volume_id, size, offset)

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        return self.inner.read_blocking(volume_id, size, offset)

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Forward."""
        return self.inner.read_nowait(volume_id, size, offset)

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Forward."""
        return await self.inner.write(volume_id, data, offset)

    async def flush(self, volume_id: str) -> None:
        """Forward."""
        await self.inner.flush(volume_id)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Forward."""
        await self.inner.discard(volume_id, length, offset)

    async def get_manifest(self, volume_id: str) -> Manifest:
        """Forward."""
        return await self.inner.get_manifest(volume_id)

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Forward."""
        return await self.inner.put_manifest(volume_id, data, if_version)

    async def sweep(self) -> None:
        """Forward."""
        await self.inner.sweep()

    async def aclose(self) -> None:
        """Forward."""
        await self.inner.aclose()
