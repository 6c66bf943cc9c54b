"""What the tests of the log share: a backend with a hook at every call, patterns of bytes, and reading all there is."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Manifest
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.log import LogOptions, LogVolume, SnapshotView
from fusevol.log.format import BLOCK

__all__ = ["QUIET", "Content", "Hooked", "Model", "State", "Step", "block_bytes", "content_of", "read_all"]

T = TypeVar("T")

#: No mark in the background, so that a test sees the calls it made and no others.
QUIET = LogOptions(idle_seconds=1e9)

#: Logical blocks that are not zero.
Content = dict[int, bytes]
#: Live content, and that of each snapshot.
State = tuple[Content, dict[str, Content]]

_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Step:
    """A moment in the life of a backend: just before or after call number `number` (counted from 1)."""

    number: int
    call: str
    volume_id: str
    after: bool


class Hooked(Wrapper):
    """Awaits `hook` before and after each call. Never answers at once, so that everything takes the waiting path."""

    def __init__(self, inner: Backend, hook: Callable[[Step], Awaitable[None]] | None = None) -> None:
        super().__init__(inner)
        self.hook = hook
        self.calls = 0

    async def _around(self, call: str, volume_id: str, make: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        number = self.calls
        if self.hook is not None:
            await self.hook(Step(number, call, volume_id, after=False))
        result = await make()
        if self.hook is not None:
            await self.hook(Step(number, call, volume_id, after=True))
        return result

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        return None

    async def create(self, volume_id: str) -> None:
        await self._around("create", volume_id, lambda: self.inner.create(volume_id))

    async def delete(self, volume_id: str) -> None:
        await self._around("delete", volume_id, lambda: self.inner.delete(volume_id))

    async def list(self) -> list[str]:
        return await self._around("list", "", lambda: self.inner.list())

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        return await self._around("read", volume_id, lambda: self.inner.read(volume_id, size, offset))

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        return await self._around("write", volume_id, lambda: self.inner.write(volume_id, data, offset))

    async def flush(self, volume_id: str) -> None:
        await self._around("flush", volume_id, lambda: self.inner.flush(volume_id))

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        await self._around("discard", volume_id, lambda: self.inner.discard(volume_id, length, offset))

    async def get_manifest(self, volume_id: str) -> Manifest:
        return await self._around("get_manifest", volume_id, lambda: self.inner.get_manifest(volume_id))

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        return await self._around(
            "put_manifest", volume_id, lambda: self.inner.put_manifest(volume_id, data, if_version)
        )


def block_bytes(seed: object) -> bytes:
    """A block that no other seed has, and that is not zero."""
    return random.Random(repr(seed)).randbytes(BLOCK)


async def content_of(source: LogVolume | SnapshotView, blocks: range) -> Content:
    """Those of the blocks that are not zero, read one by one after a read in one piece."""
    whole = bytes(await source.read(len(blocks) * BLOCK, blocks.start * BLOCK))
    found = {}
    for at, block in enumerate(blocks):
        data = bytes(await source.read(BLOCK, block * BLOCK))
        assert data == whole[at * BLOCK : (at + 1) * BLOCK]
        if data != _ZEROS:
            found[block] = data
    return found


async def read_all(volume: LogVolume, blocks: range) -> State:
    """The live content and that of every snapshot."""
    live = await content_of(volume, blocks)
    snapshots = {}
    for snapshot in volume.snapshots():
        async with volume.view(snapshot.name) as view:
            snapshots[snapshot.name] = await content_of(view, blocks)
    return live, snapshots


@dataclass(slots=True)
class Model:
    """What a volume holds, and what it may come back as.

    live, snapshots: as the process sees them. barriers: the states one of which a recovery must find: the
    last one acknowledged, then those that were attempted since.
    """

    live: Content = field(default_factory=dict)
    snapshots: dict[str, Content] = field(default_factory=dict)
    barriers: list[State] = field(default_factory=lambda: [({}, {})])

    def state(self) -> State:
        """A copy of what the process sees. Content is never changed in place."""
        return self.live, dict(self.snapshots)

    def set(self, state: State) -> None:
        """The process sees something else now."""
        self.live, self.snapshots = state[0], dict(state[1])

    def write(self, block: int, data: bytes) -> None:
        """Map a block, or unmap it with empty data."""
        self.live = {**self.live, block: data}
        if not data:
            del self.live[block]

    def attempt(self, *states: State) -> None:
        """From now on a recovery may also find the present state, or one of `states`."""
        self.barriers += [self.state(), *states]

    def acknowledge(self) -> None:
        """From now on a recovery must find the present state, or one attempted later."""
        self.barriers = [self.state()]
