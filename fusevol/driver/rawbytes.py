"""The raw bytes of volumes: IODriver on their logs, for as long as no mount writes to them."""

from typing import TYPE_CHECKING

from fusevol.api import Buffer, IODriver, Volume
from fusevol.driver.attachment import believed, refuse_if_elsewhere
from fusevol.driver.context import Context
from fusevol.errors import NoSpace, NotSupported, ReadOnly, VolumeBusy

if TYPE_CHECKING:
    from fusevol.log import LogVolume

__all__ = ["RawBytes"]

#: Where the space of a volume ends (`LogVolume`).
_SPACE = 1 << 63
_BLOCK_SHIFT = 12


class RawBytes(IODriver):
    """Reads and writes below the filesystem, as of a device without one.

    Each write attaches the volume and is on stable storage when it returns: that suits importing and looking, in
    large pieces, rather than serving. Where the volume has a filesystem, what is written here may destroy it, and
    mounting discards what is not part of it.
    """

    context: Context

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Bytes of a volume or snapshot. Raises VolumeBusy while a mount writes to it, besides what IODriver says."""
        record = believed(await self.context.store.get_vol(volume_id))
        count = size if offset + size <= _SPACE or offset < 0 else max(0, _SPACE - offset)

        async def from_snapshot(log: "LogVolume") -> Buffer:
            async with log.view(record.locator.name) as view:
                return bytes(await view.read(count, offset))

        async def from_live(log: "LogVolume") -> Buffer:
            log.check_finished()
            return bytes(await log.read(count, offset))

        if count == 0 and size > 0:
            return b""
        if record.is_snapshot:
            return await self.context.look(await self.context.store.get_vol(record.source.parent), from_snapshot)
        self._refuse_if_written(record)
        return await self.context.look(record, from_live)

    def _refuse_if_written(self, volume: Volume) -> None:
        from fusevol.driver.server import mount_options

        refuse_if_elsewhere(volume)
        if volume.attached_on and not mount_options(volume.mount_options, volume.locator.name)[0].read_only:
            self.context.refuse_if_mounted(volume, "read below its filesystem")

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Write to a volume that is not mounted; on stable storage when it returns.

        Raises VolumeBusy while it is mounted, ReadOnly for a snapshot, NoSpace where it would hold more than its
        size, besides what IODriver says.
        """
        if (await self.context.store.get_vol(volume_id)).is_snapshot:
            raise ReadOnly("a snapshot cannot be written", hint="make a clone of it and write to that")
        async with self.context.hold(volume_id) as volume, self.context.writing(volume) as log:
            if volume.spec.ephemeral:
                raise NotSupported(
                    f'volume "{volume.locator.name}" is ephemeral: it holds nothing but what its mount does'
                )
            if volume.spec.size:
                await self._check_room(volume, log, len(data), offset)
            return await log.write(data, offset)

    async def _check_room(self, volume: Volume, log: "LogVolume", size: int, offset: int) -> None:
        live = (await log.usage()).live
        if live + size + (2 << _BLOCK_SHIFT) <= volume.spec.size or offset < 0 or not size:
            return
        first, end = offset >> _BLOCK_SHIFT, -(-(offset + size) >> _BLOCK_SHIFT)
        mapped = sum([count async for _, count in log.mapped(first, end, lambda *_: None)])
        if live + ((end - first - mapped) << _BLOCK_SHIFT) > volume.spec.size:
            raise NoSpace(f'volume "{volume.locator.name}" may hold {volume.spec.size} bytes, and holds {live}')

    async def flush(self, volume_id: str) -> None:
        """Nothing is left to do, since each write is on stable storage when it returns.

        Raises VolumeNotFound, VolumeBusy while a mount writes to it.
        """
        record = believed(await self.context.store.get_vol(volume_id))
        if record.state.value in ("pending", "deleted"):
            raise VolumeBusy(f'volume "{record.locator.name}" is being created or deleted')
        self._refuse_if_written(record)
