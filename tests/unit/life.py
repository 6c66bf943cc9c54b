"""A life of a volume, every operation of it, next to a model: for tests that make something go wrong on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio

from fusevol.backends.base import Backend
from fusevol.backends.memory import MemoryBackend
from fusevol.errors import BackendError, CorruptData, Fenced, FusevolError, VolumeHasSnapshots
from fusevol.log import LogVolume, clone_volume, create_volume, delete_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.volumes import QUIET, Content, Model, block_bytes, content_of, read_all

__all__ = ["BLOCKS", "LIFE", "Broken", "Life", "exact", "verify"]

#: Across the border of two leaves.
BLOCKS = range(1018, 1032)

#: A life of a volume: every operation there is, over unflushed, flushed and checkpointed data, with a clone.
LIFE: list[tuple[Any, ...]] = [
    ("write", 1019, 3), ("flush",), ("write", 1022, 4), ("snapshot", "a"),
    ("write", 1019, 2), ("flush",), ("discard", 1021, 2), ("write", 1030, 1), ("checkpoint",),
    ("snapshot", "b"), ("write", 1018, 6), ("restore", "a"), ("write", 1025, 2), ("flush",),
    ("clone", "b"), ("use-clone",), ("delete", "a"), ("write", 1019, 1), ("reopen",),
    ("write", 1020, 2), ("flush",), ("restore", "b"), ("delete-clone",), ("delete", "b"),
    ("write", 1028, 1), ("reclaim",), ("write", 1029, 1), ("reopen",),
]  # fmt: skip


class Broken(Exception):
    """The volume takes no more: it has to be opened again."""


class Life:
    """Lives LIFE on a backend that may fail, next to a model."""

    def __init__(
        self,
        backend: Backend,
        expected: type[FusevolError] = BackendError,
        operations: list[tuple[Any, ...]] = LIFE,
    ) -> None:
        self.backend = backend
        self.operations = operations
        self.expected = expected
        self.model = Model()
        self.clone: Content | None = None
        self.clone_base: Content = {}
        self.deleting_clone = False
        self.told: list[FusevolError] = []
        self.scope: trio.CancelScope | None = None
        self.cancelled = 0
        self.writes = 0
        self._context: AbstractAsyncContextManager[LogVolume] | None = None
        self._volume: LogVolume | None = None

    @property
    def volume(self) -> LogVolume:
        assert self._volume is not None
        return self._volume

    async def attach(self) -> None:
        context = open_volume(self.backend, "v", options=QUIET)
        self._volume = await context.__aenter__()
        self._context = context

    async def detach(self, *, abandon: bool = False) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        if abandon:
            self.volume.abandon()
        await context.__aexit__(None, None, None)

    async def live(self, *, retry: bool) -> None:
        """Go through LIFE. At an error: once more (and again after a recovery, if it must be), or stop."""
        try:
            await self._insist(self._create, retry)
            await self._insist(self.attach, retry)
            for operation in self.operations:
                whole = operation[0] == "reopen"  # leaves a nursery, and so cannot be done in a scope of its own
                await self._insist(lambda operation=operation: self._apply(*operation), retry, whole)  # type: ignore[misc]
            await self.detach()
        except Broken:
            pass
        finally:
            await self.detach(abandon=True)

    async def _insist(self, act: Callable[[], Awaitable[None]], retry: bool, whole: bool = True) -> None:
        try:
            if await (act() if whole else self._uncancelled(act)) is not False:
                return
        except FusevolError as error:
            self._tell(error)
            if not retry:
                raise Broken from error
        for _ in range(3):
            if self._context is not None:
                await self._check_memory()
            try:
                await act()
            except BackendError as error:
                self._tell(error)
                if error.hint and "attach it again" in error.hint:
                    break
            else:
                return
        # Broken for good, and saying so; or between two openings, where nothing is.
        if self._context is not None:
            with pytest.raises(BackendError, match=r"could not be flushed|took effect"):
                await self.volume.write(block_bytes("never"), BLOCKS.start * BLOCK)
            with pytest.raises(BackendError, match=r"could not be flushed|took effect"):
                await self.volume.flush()
            await self.detach(abandon=True)
        await self.attach()
        await self.recovered()
        await act()

    async def _uncancelled(self, act: Callable[[], Awaitable[None]]) -> bool:
        """Do it, in a scope that may be cancelled; False if it was cut short, and has to be done again."""
        before = self.model.state()
        with trio.CancelScope() as self.scope:
            await act()
            return True
        self.cancelled += 1
        live, snapshots = await read_all(self.volume, BLOCKS)
        assert (live, snapshots) in (*self.model.barriers, self.model.state()) or (
            snapshots == before[1]
            and all(live.get(block) in (before[0].get(block), self.model.live.get(block), None) for block in BLOCKS)
        )
        done = snapshots.keys() != before[1].keys()
        self.model.set((live, snapshots))
        self.model.barriers.append((live, snapshots))
        return done

    def _tell(self, error: FusevolError) -> None:
        assert isinstance(error, self.expected), f"an error of another kind: {error!r}"
        assert type(error) is not CorruptData
        self.told.append(error)

    async def _check_memory(self) -> None:
        """What the open volume shows is what the model says, give or take the write that failed."""
        live, snapshots = await read_all(self.volume, BLOCKS)
        assert snapshots == self.model.snapshots
        assert live == self.model.live

    async def recovered(self) -> None:
        """The volume was opened again: it is at a barrier that it may be at."""
        found = await read_all(self.volume, BLOCKS)
        assert found in self.model.barriers, "neither the last barrier nor a later one"
        self.model.set(found)
        self.model.acknowledge()

    async def _create(self) -> None:
        if "v" in await self.backend.list():
            await delete_volume(self.backend, "v")
        await create_volume(self.backend, "v")

    async def _apply(self, kind: str, *arguments: Any) -> None:
        method: Callable[..., Awaitable[None]] = getattr(self, "_" + kind.replace("-", "_"))
        await method(*arguments)

    async def _write(self, block: int, count: int) -> None:
        for at in range(block, block + count):
            self.writes += 1
            data = block_bytes((at, self.writes))
            await self.volume.write(data, at * BLOCK)
            self.model.write(at, data)

    async def _discard(self, block: int, count: int) -> None:
        await self.volume.discard(count * BLOCK, block * BLOCK)
        for at in range(block, block + count):
            if at in self.model.live:
                self.model.write(at, b"")

    async def _flush(self) -> None:
        self.model.attempt()
        await self.volume.flush()
        self.model.acknowledge()

    async def _checkpoint(self) -> None:
        self.model.attempt()
        await self.volume.checkpoint()
        self.model.acknowledge()

    async def _reclaim(self) -> None:
        self.model.attempt()
        await self.volume.reclaim()
        self.model.acknowledge()
        if self.expected is not Fenced:  # who takes over writes to the same space
            assert (await self.volume.usage()).total == await self.backend.used_size("v")

    async def _snapshot(self, name: str) -> None:
        live, snapshots = self.model.state()
        after = (live, {**snapshots, name: live})
        self.model.attempt(after)
        await self.volume.snapshot(name)
        self.model.set(after)
        self.model.acknowledge()

    async def _restore(self, name: str) -> None:
        live, snapshots = self.model.state()
        safety = self.volume._safety_name(name)
        after = (snapshots[name], {**snapshots, safety: live})
        self.model.attempt(after)
        assert (await self.volume.restore(name)).name == safety
        self.model.set(after)
        self.model.acknowledge()

    async def _delete(self, name: str) -> None:
        live, snapshots = self.model.state()
        if name not in snapshots:
            return  # a recovery found it deleted
        after = (live, {other: content for other, content in snapshots.items() if other != name})
        self.model.attempt(after)
        try:
            await self.volume.delete_snapshot(name)
        except VolumeHasSnapshots:
            # The clone's deletion was cut short where it may be: nothing but the clone stands in the way.
            assert "c" in await self.backend.list()
            raise
        self.model.set(after)
        self.model.acknowledge()

    async def _clone(self, name: str) -> None:
        if "c" in await self.backend.list():
            await delete_volume(self.backend, "c")
        await clone_volume(self.backend, "v", name, "c")
        self.clone = self.clone_base = self.model.snapshots[name]

    async def _use_clone(self) -> None:
        assert self.clone is not None
        async with open_volume(self.backend, "c", options=QUIET) as clone:
            data = block_bytes("clone")
            assert await content_of(clone, BLOCKS) in (self.clone_base, {**self.clone_base, 1026: data})
            await clone.write(data, 1026 * BLOCK)
            await clone.snapshot("mine") if not clone.snapshots() else await clone.flush()
        self.clone = self.clone_base = {**self.clone_base, 1026: data}

    async def _delete_clone(self) -> None:
        if "c" in await self.backend.list():
            if not self.deleting_clone:
                async with open_volume(self.backend, "c", options=QUIET, read_only=True) as clone:
                    assert await content_of(clone, BLOCKS) == self.clone
            self.deleting_clone = True
            await delete_volume(self.backend, "c")
        self.clone = None

    async def _reopen(self) -> None:
        if self._context is not None:
            self.model.attempt()
            await self.detach()
            self.model.acknowledge()
        await self.attach()
        await self.recovered()


async def verify(inner: MemoryBackend, life: Life) -> None:
    """The faults are over: everything is there, nothing is leaked, and all of it can be deleted."""
    if "v" not in inner.spaces or not inner.spaces["v"].manifest.data:
        assert life.model.barriers == [({}, {})]
        return
    for volume_id, space in list(inner.spaces.items()):
        if b'"state":"deleting"' in space.manifest.data:
            with pytest.raises(CorruptData, match="deletion was interrupted"):
                async with open_volume(inner, volume_id):
                    pass
            await delete_volume(inner, volume_id)
    async with open_volume(inner, "v", options=QUIET, read_only=True) as reader:
        seen = await read_all(reader, BLOCKS)
    async with open_volume(inner, "v", options=QUIET) as volume:
        found = await read_all(volume, BLOCKS)
        assert found == seen
        assert found in life.model.barriers, "neither the last barrier nor a later one"
        await exact(inner, volume)
        await volume.write(block_bytes("after"), BLOCKS.start * BLOCK)
        await volume.flush()
    if "c" in inner.spaces:
        if life.clone is not None:
            async with open_volume(inner, "c", options=QUIET) as clone:
                assert await content_of(clone, BLOCKS) in (life.clone, {**life.clone, 1026: block_bytes("clone")})
                await exact(inner, clone)
        await delete_volume(inner, "c")
    async with open_volume(inner, "v", options=QUIET) as volume:
        assert await content_of(volume, BLOCKS) == {**found[0], BLOCKS.start: block_bytes("after")}
        for snapshot in volume.snapshots():
            await volume.delete_snapshot(snapshot.name)
        assert volume.background_error is None
        await volume.discard(len(BLOCKS) * BLOCK, BLOCKS.start * BLOCK)
        await exact(inner, volume)
        usage = await volume.usage()
        assert (usage.live, usage.data, usage.snapshots) == (0, 0, 0)
    await delete_volume(inner, "v")
    assert not inner.spaces


async def exact(inner: MemoryBackend, volume: LogVolume) -> None:
    await volume.reclaim()
    usage = await volume.usage()
    assert usage.reclaimable == 0
    assert usage.total == inner.spaces[volume.volume_id].used_size()
