"""Making, cloning, opening and deleting volumes; the order of steps is that of docs/format.md section 5."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import trio

from fusevol.backends.base import NO_VERSION, Backend
from fusevol.errors import (
    CorruptData,
    NoSpace,
    SnapshotNotFound,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
)
from fusevol.log.appender import Appender
from fusevol.log.attachment import (
    Attachment,
    Claim,
    check_ready,
    is_stale,
    read_manifest,
    update_manifest,
    without_pins,
)
from fusevol.log.datapath import DataPath
from fusevol.log.extents import ExtentMap
from fusevol.log.format import BLOCK, BLOCK_SHIFT, INDEX_BITS, KIND_MAP
from fusevol.log.options import LogOptions
from fusevol.log.reader import BlockReader
from fusevol.log.records import Ancestor, Blob, Checkpoint, Manifest, Origin, Pin, decode
from fusevol.log.recovery import Rolled, roll_forward
from fusevol.log.space import FreeList
from fusevol.log.state import History, State
from fusevol.log.tree import NodeCache, Tree
from fusevol.log.volume import LogVolume

__all__ = [
    "clone_volume",
    "create_volume",
    "delete_volume",
    "describe_volume",
    "empty_volume",
    "open_volume",
]

_READ_RETRIES = 5
#: Behind the ends of so many logs, each attach gives back what is there: what a writer that was fenced had begun to
#: store may arrive after the attach that fenced it.
_SWEPT = 8


async def create_volume(backend: Backend, volume_id: str, about: str = "") -> None:
    """Make an empty volume. about: as `Manifest.about`. Raises AlreadyExists, InvalidArgument, BackendError."""
    await backend.create(volume_id)
    manifest = Manifest(uuid=secrets.token_hex(16), about=about or msgspec.UNSET)
    await backend.put_manifest(volume_id, manifest.to_bytes(), NO_VERSION)


async def empty_volume(backend: Backend, volume_id: str) -> None:
    """Make a volume new, snapshots and all; also one whose making or emptying was interrupted.

    Its epochs go on, so that whoever had it attached before is fenced as ever. Raises as `delete_volume`.
    """
    new = Manifest(uuid=secrets.token_hex(16))
    with suppress(VolumeNotFound, CorruptData):
        old, _ = await read_manifest(backend, volume_id)
        new = msgspec.structs.replace(new, epoch=old.epoch, about=old.about)
    with suppress(VolumeNotFound):
        await delete_volume(backend, volume_id)
    await backend.create(volume_id)
    await backend.put_manifest(volume_id, new.to_bytes(), NO_VERSION)


async def clone_volume(backend: Backend, parent: str, snapshot: str, volume_id: str, about: str = "") -> None:
    """Make a writable volume that starts as a snapshot of another, in the same backend.

    Independent of the snapshot's size; the parent may be attached and busy. about: as `Manifest.about`. Raises
    VolumeNotFound, SnapshotNotFound, AlreadyExists, BackendError, CorruptData.
    """
    manifest, history = await _read_history(backend, parent)
    origin = history.find(snapshot, parent)
    ancestors = manifest.origin.ancestors if manifest.origin else ()
    own = Ancestor(epoch=max(origin.node_position, origin.position) >> INDEX_BITS, volume_id=parent)
    clone = Manifest(
        uuid=secrets.token_hex(16), epoch=own.epoch, state="pending", about=about or msgspec.UNSET,
        origin=Origin(
            parent=parent, snapshot=origin.id, root=origin.root, mapped=origin.mapped, ancestors=(*ancestors, own)
        ),
    )  # fmt: skip
    await backend.create(volume_id)
    try:
        await backend.put_manifest(volume_id, clone.to_bytes(), NO_VERSION)
        await _pin(backend, parent, Pin(snapshot=origin.id, clone=volume_id, uuid=clone.uuid), snapshot)
    except BaseException:
        with trio.CancelScope(shield=True):
            await delete_volume(backend, volume_id)
        raise
    await update_manifest(backend, volume_id, lambda manifest: _ready(manifest, clone.uuid))


def _ready(manifest: Manifest, uuid: str) -> Manifest:
    if manifest.uuid != uuid or manifest.state == "deleting":
        raise VolumeNotFound("the clone was deleted while it was being made")
    return msgspec.structs.replace(manifest, state="ready")


async def _pin(backend: Backend, parent: str, pin: Pin, name: str) -> None:
    """Record a pin, if its snapshot is still there: it may have been deleted since it was looked up."""
    while True:
        manifest, history = await _read_history(backend, parent)
        if pin.snapshot not in history.snapshots:
            raise SnapshotNotFound(f'volume "{parent}" has no snapshot "{name}" any more')
        checked = manifest.checkpoint

        def add(current: Manifest, checked: Blob | None = checked) -> Manifest:
            if current.state != "ready":
                raise VolumeNotFound(f'volume "{parent}" is being deleted')
            if current.checkpoint != checked or pin in current.pins:
                return current
            return msgspec.structs.replace(current, pins=(*current.pins, pin))

        after, _ = await update_manifest(backend, parent, add)
        if pin in after.pins:
            return


async def delete_volume(backend: Backend, volume_id: str) -> None:
    """Delete a volume that has no snapshots with clones. Who has it attached is fenced by its absence.

    Raises VolumeNotFound, VolumeHasSnapshots, BackendError. Damaged volumes can be deleted, too.
    """
    try:
        manifest: Manifest | None = (await read_manifest(backend, volume_id))[0]
    except CorruptData:
        manifest = None
    while manifest:
        if clones := [pin.clone for pin in manifest.pins if not await is_stale(backend, pin)]:
            raise VolumeHasSnapshots(
                f'volume "{volume_id}" has clones: {", ".join(clones)}', hint="delete its clones first"
            )
        known = manifest.pins

        def mark(current: Manifest, known: tuple[Pin, ...] = known) -> Manifest:
            return msgspec.structs.replace(current, state="deleting") if current.pins == known else current

        try:
            manifest, _ = await update_manifest(backend, volume_id, mark)
        except NoSpace:
            break  # a full store must not keep a volume from being deleted
        if manifest.state == "deleting":
            break
    await backend.delete(volume_id)
    if manifest and manifest.origin:
        pin = Pin(snapshot=manifest.origin.snapshot, clone=volume_id, uuid=manifest.uuid)
        with suppress(VolumeNotFound):
            await update_manifest(backend, manifest.origin.parent, lambda parent: without_pins(parent, {pin}))


async def describe_volume(backend: Backend, volume_id: str, about: str) -> None:
    """Have a volume say that of itself, as `Manifest.about`; who has it attached goes on. Raises as `read_manifest`."""
    await update_manifest(backend, volume_id, lambda manifest: msgspec.structs.replace(manifest, about=about))


async def _read_history(backend: Backend, volume_id: str) -> tuple[Manifest, History]:
    """Manifest and snapshots of a volume that somebody else may be writing.

    A checkpoint may be given back while it is read; then the manifest names a newer one by now.
    """
    for attempt in range(_READ_RETRIES):
        manifest, _ = await read_manifest(backend, volume_id)
        reader = _reader(backend, volume_id, manifest)
        try:
            state, record = await _read_state(reader, manifest)
        except CorruptData:
            again, _ = await read_manifest(backend, volume_id)
            if again.checkpoint == manifest.checkpoint or attempt == _READ_RETRIES - 1:
                raise
        else:
            del record
            return manifest, state.history
    raise AssertionError


def _reader(backend: Backend, volume_id: str, manifest: Manifest) -> BlockReader:
    return BlockReader(backend, volume_id, manifest.origin.ancestors if manifest.origin else ())


async def _read_state(reader: BlockReader, manifest: Manifest, claimed: int = 0) -> tuple[State, Checkpoint]:
    """The last checkpoint: its record, and the state it describes. claimed: epochs the caller has just taken."""
    origin, blob = manifest.origin, manifest.checkpoint
    if blob is None:
        root, mapped = (origin.root, origin.mapped) if origin else (None, 0)
        start = max(1 << INDEX_BITS, reader.own_from)
        if manifest.epoch - claimed < start >> INDEX_BITS and await reader.backend.used_size(reader.volume_id):
            raise CorruptData(
                f'the manifest of volume "{reader.volume_id}" is that of a volume never written to, but its space is '
                "not empty",
                hint="restore the volume's newest manifest",
            )
        return State(), Checkpoint(number=0, sequence=0, position=start, root=root, mapped=mapped, inherited=mapped)
    body = await reader.blob(blob, "the checkpoint record")
    record = decode(body, Checkpoint, f'the checkpoint record of volume "{reader.volume_id}"')
    table = bytes(await reader.blob(record.snapshots, "the snapshot table")) if record.snapshots else b""
    free = bytes(await reader.blob(record.free, "the free list")) if record.free else b""
    return State(
        history=History.load(table, record, reader.volume_id),
        number=record.number,
        record=blob,
        table=record.snapshots,
        free_blob=record.free,
        free=FreeList.from_bytes(free),
        data_blocks=record.data_blocks,
        meta_blocks=record.meta_blocks,
        sequence=record.sequence,
        swept=record.swept,
    ), record


@asynccontextmanager
async def open_volume(
    backend: Backend,
    volume_id: str,
    *,
    read_only: bool = False,
    options: LogOptions | None = None,
    claim: Claim | None = None,
) -> AsyncIterator[LogVolume]:
    """Attach a volume: take it over from whoever has it, recover it, and on leaving flush and close it.

    read_only: take nothing over and write nothing; see the volume as its last barrier (or a later one of a
    writer that is at work) left it. claim: for whom it is attached, who then stands in the manifest until it is left.

    Raises VolumeNotFound, CorruptData, NotSupported, BackendError, VolumeBusy (read_only: it changes too fast), and
    what `claim` does.
    An error on leaving means that the last writes are not durable; unless the body raised one itself.
    """
    options = options or LogOptions()
    failure: BaseException | None = None
    # Errors leave as themselves, not in the nursery's exception group: its tasks raise none of their own.
    try:
        async with trio.open_nursery() as nursery:
            try:
                if read_only:
                    volume = await _open_read_only(backend, volume_id, options, nursery)
                else:
                    volume = await _attach(backend, volume_id, options, nursery, claim)
                try:
                    yield volume
                finally:
                    with trio.CancelScope(shield=True):
                        try:
                            await volume.close()
                        finally:
                            volume.stop()
            except BaseException as error:  # noqa: BLE001
                failure = error
            nursery.cancel_scope.cancel()
    except BaseException:
        # The nursery's own, cancelled from outside: that must not hide that writes were lost.
        if failure is None or isinstance(failure, trio.Cancelled):
            raise
    if failure is not None:
        raise failure


async def _attach(
    backend: Backend, volume_id: str, options: LogOptions, nursery: trio.Nursery, claim: Claim | None
) -> LogVolume:
    attachment = await Attachment.claim(backend, volume_id, claim)
    try:
        try:
            return await _recover(attachment, options, nursery)
        except CorruptData:
            # No damage if somebody else took the volume over meanwhile, and gave back what was to be read.
            await attachment.confirm()
            raise
    except BaseException:
        with trio.CancelScope(shield=True):
            await attachment.release()
        raise


async def _recover(attachment: Attachment, options: LogOptions, nursery: trio.Nursery) -> LogVolume:
    """Bring a volume just claimed to the last barrier, and make it ready for writing."""
    backend, volume_id, manifest = attachment.backend, attachment.volume_id, attachment.manifest
    if any(await backend.read_stored(volume_id, BLOCK, attachment.head << BLOCK_SHIFT)):
        raise CorruptData(
            f'the manifest of volume "{volume_id}" is older than its log: epoch {manifest.epoch} was used before',
            hint="restore the volume's newest manifest",
        )
    reader, cache = _reader(backend, volume_id, manifest), NodeCache(options.cached_nodes)
    state, record = await _read_state(reader, manifest, claimed=1)
    rolled = await roll_forward(backend, volume_id, manifest, record)
    log = Appender(
        backend, volume_id, bytes.fromhex(manifest.uuid), nursery, attachment.confirm, head=attachment.head,
        sequence=rolled.seen, durable=rolled.sequence, in_flight=options.in_flight,
    )  # fmt: skip
    live = ExtentMap(await Tree.load(reader, cache, record.root), record.mapped, record.inherited)
    volume = LogVolume(backend, volume_id, reader, cache, live, state, options, log, attachment, nursery)
    volume.becoming = manifest.becoming or ""
    try:
        await _replay(volume, rolled, record)
        # What was accepted may have reached the device's cache only; and nothing behind it will ever be accepted.
        await backend.flush(volume_id)
        behind = rolled.end, attachment.head - rolled.end
        state.swept = (*state.swept, behind)[-_SWEPT:]
        try:
            await volume.start()
        except NoSpace:
            # What a crash left there may be room enough. Whoever comes is not to find it, nor what arrives there yet.
            await attachment.publish(lambda manifest: msgspec.structs.replace(manifest, end=rolled.end))
            await backend.discard(volume_id, behind[1] << BLOCK_SHIFT, behind[0] << BLOCK_SHIFT)
            await volume.start()
        # Not before there is a checkpoint behind it: until then somebody else may come who finds more of the log.
        for address, blocks in state.swept:
            await backend.discard(volume_id, blocks << BLOCK_SHIFT, address << BLOCK_SHIFT)
    except BaseException:
        volume.stop()
        raise
    return volume


async def _open_read_only(backend: Backend, volume_id: str, options: LogOptions, nursery: trio.Nursery) -> LogVolume:
    for attempt in range(_READ_RETRIES):
        manifest, _ = await read_manifest(backend, volume_id)
        check_ready(manifest, volume_id)
        reader, cache = _reader(backend, volume_id, manifest), NodeCache(options.cached_nodes)
        try:
            state, record = await _read_state(reader, manifest)
            live = ExtentMap(await Tree.load(reader, cache, record.root), record.mapped, record.inherited)
            volume = LogVolume(backend, volume_id, reader, cache, live, state, options, nursery=nursery)
            volume.becoming = manifest.becoming or ""
            await _replay(volume, await roll_forward(backend, volume_id, manifest, record), record)
        except CorruptData:
            # A writer at work may have given back what was read, or have written on while it was.
            if attempt == _READ_RETRIES - 1:
                raise
        else:
            # Once there is a newer checkpoint, it gives back the log behind this one: what was read was cut short.
            again, _ = await read_manifest(backend, volume_id)
            if again.checkpoint == manifest.checkpoint:
                # A copy may have begun since, of which the log has had a part already.
                volume.becoming = volume.becoming or again.becoming or ""
                return volume
    raise VolumeBusy(f'volume "{volume_id}" changes faster than it can be read; try again')


async def _replay(volume: LogVolume, rolled: Rolled, record: Checkpoint) -> None:
    """Apply the log behind the checkpoint to the live map, and account for what it holds."""
    path: DataPath = volume.path
    state = volume.state
    for batch in rolled.batches:
        header, first = batch.header, batch.header.address + 1
        overhead = [(header.address, 1)]
        if header.table_blocks:
            overhead.append((first + header.blocks, header.table_blocks))
        payload = (first, header.blocks)
        state.meta_blocks += 1 + header.table_blocks
        if batch.apply:
            for op in batch.operations:
                address = 0 if op.discard else first + op.slot
                await path.replay(op.start, op.count, address, batch.sums[op.slot : op.slot + op.count].tolist())
        elif header.blocks:
            # Nodes of a checkpoint: this one's, or of one that was not committed; or data behind the last barrier.
            state.meta_blocks += header.blocks
            if not (header.kind == KIND_MAP and header.checkpoint == record.number):
                state.garbage.append(payload)
        state.garbage += overhead
