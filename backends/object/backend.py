"""ObjectBackend: volumes in an object store, every write one immutable object.

    .volumes/<volume>                          says who made it; its being there is what makes a volume exist
    <volume>/data/<offset>-<length>            16 and 8 hexadecimal digits
    <volume>/manifest                          see `client.seal`
    <volume>/dead                              JSON: {object name: [[start, stop], ...]}, see `discard`

What is where is kept in memory. It is listed once, when a volume is first used; after that

- a read of bytes that a known object holds lists nothing;
- a read of bytes that none does lists the names around them (one request, as a rule) before it says that
  they are a hole, so what another process wrote is always found;
- an object that turns out to be gone is looked for again in a new listing, for another process may have
  rewritten it in pieces.

Writes are checked against the objects known here, and, where the name is the same, against the store.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Backend, Manifest, Traits
from fusevol.backends.checks import check_range, check_volume_id, flat
from fusevol.backends.object.client import Client, Missing, client_of, open_client
from fusevol.backends.object.index import MAX_OBJECT, Stored
from fusevol.backends.object.volume import KnownVolume
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    InvalidArgument,
    ManifestConflict,
    VolumeNotFound,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["ObjectBackend"]


class ObjectBackend(Backend):
    """A backend on any store that obstore reaches.

    `url` is one that obstore knows (memory://, file:///dir, s3://bucket/prefix, gs://, az://); `config`,
    `client_options` and `retry_config` go to its store. Or give a ready `store`. `prefix` is put before
    every path.

    In a local directory a write that was not flushed can be torn by a power cut; elsewhere writes are
    atomic.
    """

    traits = Traits(rewritable=False, atomic_writes=True, remote=True)

    def __init__(
        self,
        url: str | None = None,
        *,
        store: "ObjectStore | None" = None,
        prefix: str = "",
        config: dict[str, Any] | None = None,
        client_options: dict[str, Any] | None = None,
        retry_config: dict[str, Any] | None = None,
    ) -> None:
        if (url is None) == (store is None):
            raise InvalidArgument("an object backend takes either a url or a store")
        if url is not None:
            self._client: Client = open_client(
                url, {"config": config, "client_options": client_options, "retry_config": retry_config}
            )
        elif store is not None:
            self._client = client_of(store)
        local = not self._client.sorted
        self.traits = Traits(durable=self._client.durable, rewritable=False, atomic_writes=not local, remote=True)
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._volumes: dict[str, KnownVolume] = {}

    # Volumes

    def _marker(self, volume_id: str) -> str:
        return f"{self._prefix}.volumes/{volume_id}"

    async def _volume(self, volume_id: str) -> KnownVolume:
        """The volume, with its index loaded."""
        check_volume_id(volume_id)
        volume = self._volumes.get(volume_id)
        if volume is None:
            volume = self._volumes[volume_id] = KnownVolume(self._client, volume_id, self._prefix)
        if not volume.loaded:
            await self._list(volume)
        return volume

    async def create(self, volume_id: str) -> None:
        """See Backend. Clears away what a writer that outlived an earlier volume may have left."""
        check_volume_id(volume_id)
        marker, folder = self._marker(volume_id), f"{self._prefix}{volume_id}"
        if not await self._client.exists(marker):
            litter = [f"{folder}/{name}" for name, _ in await self._client.names(folder)]
            await self._client.delete(litter)
            sign = os.urandom(8)
            with suppress(Missing):  # of somebody who has made it, and deleted it by now
                # A put whose answer was lost is tried again, and then meets with itself.
                if await self._client.create(marker, sign) or await self._client.get(marker) == sign:
                    await self._client.make_durable([marker, *litter])
                    self._volumes.pop(volume_id, None)
                    return
        raise AlreadyExists(f"volume {volume_id!r} exists")

    async def delete(self, volume_id: str) -> None:
        """See Backend. The marker goes last."""
        check_volume_id(volume_id)
        marker, folder = self._marker(volume_id), f"{self._prefix}{volume_id}"
        volume = self._volumes.get(volume_id)
        if not await self._client.exists(marker):
            self._volumes.pop(volume_id, None)
            raise VolumeNotFound(f"volume {volume_id!r} does not exist")
        if volume is not None:
            volume.deleted = True
            await volume.finish_uploads()
        self._volumes.pop(volume_id, None)
        paths = [f"{folder}/{name}" for name, _ in await self._client.names(folder)]
        await self._client.delete(paths)
        await self._client.make_durable(paths)
        await self._client.drop_folder(folder)
        await self._client.delete([marker])
        await self._client.make_durable([marker])

    async def list(self) -> list[str]:
        """See Backend."""
        return sorted(name for name, _ in await self._client.names(f"{self._prefix}.volumes"))

    async def used_size(self, volume_id: str) -> int:
        """Bytes of the objects known here."""
        return (await self._volume(volume_id)).index.size

    async def _list(self, volume: KnownVolume, start: int = 0, stop: int | None = None) -> None:
        """Bring the index up to date with the store, for objects with a byte between start and stop."""
        async with volume.listing:
            if stop is None and not await self._client.exists(self._marker(volume.id)):
                volume.deleted = True
                if self._volumes.get(volume.id) is volume:
                    del self._volumes[volume.id]
                raise VolumeNotFound(f"volume {volume.id!r} does not exist")
            first = max(0, start - MAX_OBJECT)
            last = 2**63 if stop is None else stop
            clock, volume.buried = volume.index.clock, set()
            names = await self._client.names(
                volume.data, f"{first:016x}" if first else "", "\uffff" if stop is None else f"{stop:016x}"
            )
            seen = set()
            for name, size in names:
                stored = Stored.parse(name)
                # The remains of a write that a power cut tore are shorter than their name says.
                if stored is not None and stored.length == size and name not in volume.buried:
                    seen.add(name)
                    volume.index.add(stored)
            for stored in volume.index:
                listed = first <= stored.offset < last
                if listed and stored.added <= clock and stored.name not in seen and not stored.busy:
                    volume.index.remove(stored)
            if not volume.loaded:
                await volume.load_dead()
                volume.loaded = True

    # Bytes

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """See IODriver. Ranges of several objects are fetched in parallel."""
        volume = await self._volume(volume_id)
        check_range(size, offset)
        if not size:
            return b""
        looked = False
        for _ in range(4):
            index = volume.index
            parts, holes = index.cover(offset, offset + size)
            if holes and not looked:
                await self._list(volume, holes[0][0], holes[-1][1])
                looked = True
                parts, holes = index.cover(offset, offset + size)
            try:
                pieces = await self._fetch(volume, parts)
            except Missing:
                # Deleted or rewritten since: by a call of ours, or by another process.
                if any(index.find(part[0].offset, part[0].length) is part[0] for part in parts):
                    await self._list(volume)
                continue
            if len(pieces) == 1 and not holes:
                return pieces[0]
            length = max(0, min(size, index.end - offset))
            data = bytearray(length)
            for (_, at, until), piece in zip(parts, pieces, strict=True):
                data[at - offset : until - offset] = piece
            return bytes(data)
        raise BackendError(f"objects of volume {volume_id!r} near {offset} disappear while they are read")

    async def read_around(self, volume_id: str, size: int, offset: int, most: int) -> tuple[int, Buffer]:
        """See Backend. What is in the same object comes with the same request."""
        index, stop = (await self._volume(volume_id)).index, offset + size
        for stored in index.overlapping(offset, stop) if 0 < size < most else ():
            if stored.offset <= offset and stop <= stored.end:
                start = max(stored.offset, offset - offset % most)
                return start, await self.read(volume_id, min(stored.end, stop + -stop % most) - start, start)
        return offset, await self.read(volume_id, size, offset)

    async def _fetch(self, volume: KnownVolume, parts: Iterable[tuple[Stored, int, int]]) -> "list_[Buffer]":
        """The bytes of parts of objects."""
        parts = [*parts]
        pieces: list_[Buffer] = [b""] * len(parts)

        async def fetch(number: int) -> None:
            stored, at, until = parts[number]
            path = volume.path(stored)
            pieces[number] = await self._client.get_range(path, at - stored.offset, until - stored.offset)

        await _all(fetch, range(len(parts)))
        return pieces

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """See IODriver. At most `MAX_OBJECT` bytes are written at once."""
        volume = await self._volume(volume_id)
        view = flat(data)
        check_range(len(view), offset)
        view = view[:MAX_OBJECT]
        if not view:
            return 0
        new, stop = Stored(offset, len(view)), offset + len(view)
        others = [(stored.offset, stored.end) for stored in volume.index.overlapping(offset, stop)]
        others += [(a, b) for a, b in volume.uploads.values() if a < stop and offset < b]
        if any(other != (offset, stop) for other in others):
            raise InvalidArgument(f"bytes {offset} to {stop} of volume {volume_id!r} were written already")
        done = trio.Event()
        volume.uploads[done] = (offset, stop)
        try:
            if new.name in volume.recorded:
                # An object of this name was discarded; what is on record of it must not befall the new one.
                await volume.save_dead()
            await volume.line.persist(partial(self._upload, volume, new, view))
            volume.index.add(new)
        finally:
            del volume.uploads[done]
            done.set()
        if volume.deleted:
            await self._client.delete([volume.path(new)])
            raise VolumeNotFound(f"volume {volume_id!r} does not exist")
        return len(view)

    async def _upload(self, volume: KnownVolume, new: Stored, view: Buffer) -> None:
        """Make the object, or see that it is there with the same bytes."""
        path = volume.path(new)
        while not await self._client.create(path, view):
            try:
                stored = await self._client.get(path)
            except Missing:
                continue
            if stored == view:
                break
            if len(stored) == len(view):
                raise InvalidArgument(f"{path} was written already, with other bytes")
            await self._client.delete([path])  # the remains of a torn write
        volume.unsynced.add(path)

    async def flush(self, volume_id: str) -> None:
        """Wait for the uploads under way, and make local files durable."""
        volume = await self._volume(volume_id)
        await volume.finish_uploads()
        if volume.dead_changed:
            await volume.save_dead()
        paths = set(volume.unsynced)
        await self._client.make_durable(paths)
        volume.unsynced -= paths

    # Space

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Delete the objects that are wholly dead; rewrite the live runs of those mostly dead.

        Dead runs of the others are remembered, and recorded in the store by the next flush, so that
        an object goes once all of it was discarded, whoever discarded what.
        """
        volume = await self._volume(volume_id)
        check_range(length, offset)
        touched = volume.index.overlapping(offset, offset + length)
        for stored in touched:
            volume.dead_changed |= stored.bury(offset, offset + length)
        await self._tidy(volume, touched)

    async def _tidy(self, volume: KnownVolume, touched: Iterable[Stored]) -> None:
        mine = [
            stored
            for stored in touched
            if not stored.busy
            and stored.live_size() * 2 < stored.length
            and volume.index.find(stored.offset, stored.length) is stored
        ]
        for stored in mine:
            stored.busy = True
        try:
            pieces: list_[Stored] = []

            async def shrink(number: int) -> None:
                pieces.extend(await self._rewrite(volume, mine[number]))

            await _all(shrink, range(len(mine)))
            for stored in mine:
                volume.index.remove(stored)
            gone = [volume.path(stored) for stored in mine]
            volume.unsynced.update(gone)
            try:
                await self._client.delete(gone)
            except BaseException:
                # Those that are there still are to be found by whoever discards them again; a listing may have done so.
                for stored in mine:
                    kept = volume.index.add(stored)
                    for start, stop in [*stored.dead]:
                        kept.bury(start, stop)
                    # A flush meanwhile has recorded what is dead without them.
                    volume.dead_changed = True
                raise
            # A listing made meanwhile may have found them, and one under way may still do so.
            for stored in mine:
                volume.buried.add(stored.name)
                found = volume.index.find(stored.offset, stored.length)
                if found is not None:
                    volume.index.remove(found)
        finally:
            for stored in mine:
                stored.busy = False
        if pieces:  # more may have died meanwhile
            await self._tidy(volume, pieces)

    async def _rewrite(self, volume: KnownVolume, stored: Stored) -> "list_[Stored]":
        """Put the live runs of an object into objects of their own, durably."""
        runs = stored.live()
        try:
            data = await self._fetch(volume, [(stored, start, stop) for start, stop in runs])
        except Missing:
            return []  # another process was faster
        pieces = [Stored(start, stop - start) for start, stop in runs]
        for piece, bytes_ in zip(pieces, data, strict=True):
            await volume.line.persist(partial(self._upload, volume, piece, bytes_))
        await self._client.make_durable([volume.path(piece) for piece in pieces])
        pieces = [volume.index.add(piece) for piece in pieces]
        for piece in pieces:
            for start, stop in stored.dead:
                piece.bury(start, stop)
        return pieces

    # Manifest

    async def get_manifest(self, volume_id: str) -> Manifest:
        """See Backend."""
        check_volume_id(volume_id)
        if (volume := self._volumes.get(volume_id)) is None or not volume.loaded:
            # Whoever wants no more than that need not wait for a list of all objects.
            await self._check_exists(volume_id)
        try:
            return await self._client.get_manifest(f"{self._prefix}{volume_id}/manifest")
        except Missing:
            await self._check_exists(volume_id)
            return Manifest(b"", NO_VERSION)

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """See Backend."""
        volume = await self._volume(volume_id)
        if if_version == NO_VERSION:
            await self._check_exists(volume_id)
        try:
            return await self._client.put_manifest(f"{volume.folder}/manifest", data, if_version)
        except ManifestConflict:
            await self._check_exists(volume_id)
            raise

    async def _check_exists(self, volume_id: str) -> None:
        if not await self._client.exists(self._marker(volume_id)):
            self._volumes.pop(volume_id, None)
            raise VolumeNotFound(f"volume {volume_id!r} does not exist")

    async def aclose(self) -> None:
        """Forget what is known of the volumes. Connections are the store's own."""
        self._volumes.clear()


# `list` is a method of every backend, so inside the class the type needs another name.
list_ = list


async def _all(work: Callable[[int], Awaitable[None]], numbers: range) -> None:
    """Run `work` for all numbers at once; of several errors raise one."""
    if len(numbers) == 1:
        await work(numbers[0])
        return
    errors: list[BackendError] = []

    async def guarded(number: int) -> None:
        try:
            await work(number)
        except BackendError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(guarded, number)
    if errors:
        raise errors[0]
