"""RecordingBackend: a journal of every call, from which the states a power cut could leave are made.

    backend = RecordingBackend(MemoryBackend())
    ...                                            # run the code under test
    for cut in range(len(backend.journal) + 1):
        survivor = backend.journal.materialise(cut, random.Random(seed))
        ...                                        # recover from `survivor`, compare with a model

The journal is a list of events, the begin and the end of each call. A cut at position p is a power cut
after the first p events: calls that ended among them returned to the caller, the others did not.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Manifest
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.powercut import Call, survivors
from fusevol.backends.wrappers.wrapper import Wrapper

__all__ = ["Call", "Event", "Journal", "RecordingBackend"]


class Event(NamedTuple):
    """One entry of the journal."""

    what: Literal["begin", "end"]
    call: Call


@dataclass(slots=True)
class Journal:
    """The events in the order in which they happened, and the store as it was before the first."""

    events: list[Event]
    base: MemoryBackend
    atomic_writes: bool

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def calls(self, kind: str | None = None) -> list[Call]:
        """The calls in the order in which they began: all, or those of one kind."""
        return [call for what, call in self.events if what == "begin" and (kind is None or call.kind == kind)]

    def materialise(self, cut: int, choose: random.Random) -> MemoryBackend:
        """One state that a power cut after the first `cut` events could leave, picked by `choose`.

        The rules are those of `powercut`.
        """
        if not 0 <= cut <= len(self.events):
            raise IndexError(f"no cut at {cut} in a journal of {len(self.events)} events")
        return survivors(self.calls(), cut, choose, self.base, atomic_writes=self.atomic_writes)


class RecordingBackend(Wrapper):
    """Keeps a journal of the calls that pass through.

    What the store held before is part of the states made from the journal only if the innermost
    backend is a MemoryBackend; wrap any other while it is empty. So a state that was made can be
    wrapped again, and the power cut during recovery.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        base, innermost = MemoryBackend(), inner
        while isinstance(innermost, Wrapper):
            innermost = innermost.inner
        if isinstance(innermost, MemoryBackend):
            base.spaces = {name: space.copy() for name, space in innermost.spaces.items()}
        self.journal = Journal([], base, inner.traits.atomic_writes)

    @contextmanager
    def _recorded(
        self,
        kind: str,
        volume_id: str,
        *,
        offset: int = 0,
        length: int = 0,
        data: Buffer | None = None,
        if_version: str = "",
    ) -> Iterator[Call]:
        events = self.journal.events
        copied = None if data is None else bytes(data)
        call = Call(kind, volume_id, len(events), offset, length, copied, if_version)
        events.append(Event("begin", call))
        try:
            yield call
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.end = len(events)
            events.append(Event("end", call))

    async def create(self, volume_id: str) -> None:
        """Record and forward."""
        with self._recorded("create", volume_id):
            await self.inner.create(volume_id)

    async def delete(self, volume_id: str) -> None:
        """Record and forward."""
        with self._recorded("delete", volume_id):
            await self.inner.delete(volume_id)

    async def list(self) -> list[str]:
        """Record and forward."""
        with self._recorded("list", ""):
            return await self.inner.list()

    async def used_size(self, volume_id: str) -> int:
        """Record and forward."""
        with self._recorded("used_size", volume_id):
            return await self.inner.used_size(volume_id)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Record, without the bytes, and forward."""
        with self._recorded("read", volume_id, offset=offset, length=size):
            return await self.inner.read(volume_id, size, offset)

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Record, without the bytes, and forward."""
        with self._recorded("read_nowait", volume_id, offset=offset, length=size):
            return self.inner.read_nowait(volume_id, size, offset)

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Record and forward."""
        length = memoryview(data).nbytes
        with self._recorded("write", volume_id, offset=offset, length=length, data=data) as call:
            call.written = await self.inner.write(volume_id, data, offset)
            return call.written

    async def flush(self, volume_id: str) -> None:
        """Record and forward."""
        with self._recorded("flush", volume_id):
            await self.inner.flush(volume_id)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Record and forward."""
        with self._recorded("discard", volume_id, offset=offset, length=length):
            await self.inner.discard(volume_id, length, offset)

    async def get_manifest(self, volume_id: str) -> Manifest:
        """Record, with what was returned, and forward."""
        with self._recorded("get_manifest", volume_id) as call:
            call.manifest = await self.inner.get_manifest(volume_id)
            return call.manifest

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Record, with the version returned, and forward."""
        with self._recorded("put_manifest", volume_id, data=data, if_version=if_version) as call:
            version = await self.inner.put_manifest(volume_id, data, if_version)
            call.manifest = Manifest(call.data or b"", version)
            return version
