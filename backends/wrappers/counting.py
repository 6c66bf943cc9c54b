"""CountingBackend: how often each call was made, how many bytes it moved, and what is under way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Manifest
from fusevol.backends.wrappers.wrapper import Wrapper

__all__ = ["CountingBackend", "Counts"]


@dataclass(slots=True)
class Counts:
    """Totals of one kind of call. A call that raised counts as an error and moved no bytes."""

    calls: int = 0
    bytes: int = 0
    errors: int = 0
    in_flight: int = 0
    most_in_flight: int = 0


class CountingBackend(Wrapper):
    """Counts the calls that pass through. A cancelled call is an error like any other.

    `read_nowait` counts as a read when it answered, and not at all when it did not.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._counts: dict[str, Counts] = {}

    def __getitem__(self, call: str) -> Counts:
        """The totals of `call` so far, as a copy: zeros if it was never made."""
        return replace(self._counts.get(call, Counts()))

    def counts(self) -> dict[str, Counts]:
        """The totals of every kind of call made so far, as a copy."""
        return {call: replace(counts) for call, counts in self._counts.items()}

    @property
    def in_flight(self) -> int:
        """Calls of any kind under way now."""
        return sum(counts.in_flight for counts in self._counts.values())

    def reset(self) -> None:
        """Forget all totals; calls under way stay counted as such."""
        for counts in self._counts.values():
            counts.calls = counts.bytes = counts.errors = 0
            counts.most_in_flight = counts.in_flight

    @contextmanager
    def _counted(self, call: str) -> Iterator[Counts]:
        counts = self._counts.setdefault(call, Counts())
        counts.calls += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        try:
            yield counts
        except BaseException:
            counts.errors += 1
            raise
        finally:
            counts.in_flight -= 1

    async def create(self, volume_id: str) -> None:
        """Count and forward."""
        with self._counted("create"):
            await self.inner.create(volume_id)

    async def delete(self, volume_id: str) -> None:
        """Count and forward."""
        with self._counted("delete"):
            await self.inner.delete(volume_id)

    async def list(self) -> list[str]:
        """Count and forward."""
        with self._counted("list"):
            return await self.inner.list()

    async def used_size(self, volume_id: str) -> int:
        """Count and forward."""
        with self._counted("used_size"):
            return await self.inner.used_size(volume_id)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Count the bytes returned, and forward."""
        with self._counted("read") as counts:
            data = await self.inner.read(volume_id, size, offset)
            counts.bytes += len(data)
            return data

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Count as a read if it was answered, and forward."""
        data = self.inner.read_nowait(volume_id, size, offset)
        if data is not None:
            with self._counted("read") as counts:
                counts.bytes += len(data)
        return data

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Count the bytes written, and forward."""
        with self._counted("write") as counts:
            written = await self.inner.write(volume_id, data, offset)
            counts.bytes += written
            return written

    async def flush(self, volume_id: str) -> None:
        """Count and forward."""
        with self._counted("flush"):
            await self.inner.flush(volume_id)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Count the bytes given back, and forward."""
        with self._counted("discard") as counts:
            await self.inner.discard(volume_id, length, offset)
            counts.bytes += length

    async def get_manifest(self, volume_id: str) -> Manifest:
        """Count the bytes returned, and forward."""
        with self._counted("get_manifest") as counts:
            manifest = await self.inner.get_manifest(volume_id)
            counts.bytes += len(manifest.data)
            return manifest

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Count the bytes put, and forward."""
        with self._counted("put_manifest") as counts:
            version = await self.inner.put_manifest(volume_id, data, if_version)
            counts.bytes += len(data)
            return version
