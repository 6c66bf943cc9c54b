"""Null drivers: what a driver inherits for the part of the interface that it does not do.

They are the BlockNotSupported, SnapshotNotSupported, IONotSupported and StatsNotSupported of the seed. Name
them before VolumeDriver: `class TapeDriver(BlockNotSupported, SnapshotNotSupported, VolumeDriver)`.
Everything raises NotSupported, except that there are no active requests.
"""

from collections.abc import Mapping
from typing import NoReturn

from fusevol.api.drivers import BlockDriver, SnapshotDriver, StatsDriver
from fusevol.api.io import Buffer, IODriver
from fusevol.api.types import ActiveRequests, Stats, VolumeLocator
from fusevol.errors import NotSupported

__all__ = ["BlockNotSupported", "IONotSupported", "SnapshotNotSupported", "StatsNotSupported"]


def _refuse(driver: object, operation: str) -> NoReturn:
    raise NotSupported(f"{type(driver).__name__} does not support {operation}")


class BlockNotSupported(BlockDriver):
    """A driver without devices."""

    async def attach(self, volume_id: str, attach_options: Mapping[str, str] | None = None) -> str:
        """Raises NotSupported."""
        _refuse(self, "attach")

    async def detach(self, volume_id: str, *, unmount_before_detach: bool = False) -> None:
        """Raises NotSupported."""
        _refuse(self, "detach")


class SnapshotNotSupported(SnapshotDriver):
    """A driver without snapshots."""

    async def snapshot(self, volume_id: str, *, readonly: bool, locator: VolumeLocator) -> str:
        """Raises NotSupported."""
        _refuse(self, "snapshot")

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Raises NotSupported."""
        _refuse(self, "restore")


class IONotSupported(IODriver):
    """A driver that does not read and write bytes itself."""

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Raises NotSupported."""
        _refuse(self, "read")

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Raises NotSupported."""
        _refuse(self, "write")

    async def flush(self, volume_id: str) -> None:
        """Raises NotSupported."""
        _refuse(self, "flush")


class StatsNotSupported(StatsDriver):
    """A driver that counts nothing."""

    async def stats(self, volume_id: str, *, cumulative: bool) -> Stats:
        """Raises NotSupported."""
        _refuse(self, "stats")

    async def used_size(self, volume_id: str) -> int:
        """Raises NotSupported."""
        _refuse(self, "used_size")

    async def get_active_requests(self) -> ActiveRequests:
        """None at all."""
        return ActiveRequests()
