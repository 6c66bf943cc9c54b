"""LocalCache: a backend that keeps on a local disk what another one was told and asked."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend
from fusevol.backends.cache.aside import Aside
from fusevol.backends.cache.slots import BLOCK, CHUNK, Slots
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.errors import BackendError

__all__ = ["LocalCache"]

#: Chunks that are fetched at once at most.
_MOST_CHUNKS = 16

log = logging.getLogger(__name__)


class LocalCache(Wrapper):
    """A cache on a local disk before a backend whose reads wait for other machines, for one process.

    What is written is acknowledged by the other backend first, so the cache holds nothing that would be missed. What is
    at an address of a log never changes, so what is cached stays true. With it the store can be read without a loop
    (`read_blocking`), which what is mounted needs; what is not cached is then fetched while the thread waits. With a
    little come its surroundings, as far as they were written together: they are likely to be wanted next, and the more
    so the more is there of what comes before them.

    open_backend: opens the other backend; once more for reads without a loop. directory: of this process alone, with
    what earlier ones left there; None begins with nothing and leaves nothing. size: bytes that the cache may take up.

    Raises BackendError where the directory cannot be used.
    """

    def __init__(self, open_backend: Callable[[], Backend], directory: Path | None, size: int) -> None:
        super().__init__(open_backend())
        self._aside = Aside(open_backend)
        #: Chunks that are being fetched.
        self._fetching: dict[tuple[str, int], trio.Event] = {}
        try:
            self._slots = Slots(directory, size)
        except OSError as error:
            raise BackendError(
                f"{directory or 'the directory for temporary files'}: nothing can be cached there: {error.strerror}"
            ) from error

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """What is cached, and in memory."""
        return self._at_hand(volume_id, size, offset, keep=False)

    def read_kept(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """The same, and it stays cached, in preference to others."""
        return self._at_hand(volume_id, size, offset, keep=True)

    def _at_hand(self, volume_id: str, size: int, offset: int, *, keep: bool) -> Buffer | None:
        places = self._slots.find(volume_id, size, offset, keep=keep) if _whole(size, offset) else None
        return self._slots.read(places, wait=False) if places else None

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        """What is cached, or else from the store."""
        # It is asked for by those who cannot wait.
        places = self._slots.find(volume_id, size, offset, keep=True) if _whole(size, offset) else None
        data: Buffer | None = self._slots.read(places, wait=True) if places else None
        if data is None:
            around = self._aside.read_around(volume_id, size, offset, CHUNK)
            data = self._remember(volume_id, *around, size, offset, keep=True)
        return data

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """What is cached, or else from the store."""
        if not _whole(size, offset):
            return await self.inner.read(volume_id, size, offset)
        cached = await self._cached(volume_id, size, offset)
        if cached is None and (others := self._fetching.get((volume_id, offset // CHUNK))) is not None:
            # It may well come with what somebody else wants.
            await others.wait()
            cached = await self._cached(volume_id, size, offset)
        if cached is not None:
            return cached
        window, done = self._window(volume_id, offset), trio.Event()
        around = window if size < window else CHUNK
        first, end = offset // around * around // CHUNK, -(-(offset + size) // around) * around // CHUNK
        chunks = [(volume_id, number) for number in range(first, end)]
        mine = [chunk for chunk in chunks if self._fetching.setdefault(chunk, done) is done]
        try:
            found = await self.inner.read_around(volume_id, size, offset, window)
            return self._remember(volume_id, *found, size, offset, keep=False)
        finally:
            for chunk in mine:
                del self._fetching[chunk]
            done.set()

    def _window(self, volume_id: str, offset: int) -> int:
        """Bytes to fetch together with a few: a power of two, as many as are there of what comes right before them.

        So whoever goes from one end to the other takes few requests, and whoever goes to and fro does not fetch much.
        """
        before = self._slots.before(volume_id, offset, _MOST_CHUNKS)
        return CHUNK << max(0, before.bit_length() - 1)

    async def _cached(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        places = self._slots.find(volume_id, size, offset)
        data = await trio.to_thread.run_sync(partial(self._slots.read, places, wait=True)) if places else None
        # Meanwhile the slots may have become others'.
        return data if self._slots.find(volume_id, size, offset) == places else None

    def _remember(self, volume_id: str, start: int, data: Buffer, size: int, offset: int, *, keep: bool) -> Buffer:
        """Of the bytes from `start` on that the store has given, those that are wanted; and have all of them cached."""
        if _whole(len(data), start) and offset + size <= start + len(data):
            self._slots.put(volume_id, data, start, keep=keep)
        return data if start == offset and len(data) <= size else memoryview(data)[offset - start :][:size]

    async def read_stored(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Past the cache."""
        return await self.inner.read_stored(volume_id, size, offset)

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Write to the store, and remember what was written."""
        count = await self.inner.write(volume_id, data, offset)
        if _whole(count, offset):
            self._slots.put(volume_id, memoryview(data).cast("B")[:count], offset)
        return count

    async def delete(self, volume_id: str) -> None:
        """Delete it there, and forget it here."""
        self._slots.forget(volume_id)
        await self.inner.delete(volume_id)
        self._slots.forget(volume_id)

    def doubt(self, volume_id: str, size: int, offset: int) -> None:
        """Forget what is cached."""
        log.warning(
            "what is cached of volume %s at %#x is not what was written; it is fetched again", volume_id, offset
        )
        if _whole(size, offset):
            self._slots.drop(volume_id, size, offset)

    async def aclose(self) -> None:
        """Close both; what is cached is used again by the next process."""
        self._slots.close()
        await trio.to_thread.run_sync(self._aside.close)
        await self.inner.aclose()


def _whole(size: int, offset: int) -> bool:
    return size > 0 and not size % BLOCK and not offset % BLOCK
