"""What a mount goes by that its volume's record says, and how it reaches that record: for it, somebody outside."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fusevol.api.types import IoThrottle
from fusevol.log import Snapshot
from fusevol.mount.schedule import Schedule, parse_schedule

__all__ = ["Outside", "Settings"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set while a volume is mounted, as VolumeSpec has it.

    created: when the volume was made, in seconds since 1970.
    """

    snapshot_interval: int = 0
    snapshot_schedule: str = ""
    io_throttle: IoThrottle = IoThrottle()
    readahead: bool = True
    created: float = 0.0

    @property
    def schedule(self) -> Schedule:
        """When snapshots are to be taken. Raises as `parse_schedule`."""
        return parse_schedule(self.snapshot_schedule, self.snapshot_interval)

    def shown(self) -> dict[str, Any]:
        """As a JSON object."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        del found["created"]
        return found


class Outside:
    """Nobody: the mount of a volume that has no record. Who keeps one overrides what there is to be done.

    Called from the mount's loop. What it raises of FusevolError is logged, or the answer to whoever asked for it.
    """

    async def settings(self) -> Settings:
        """What the record says now."""
        return Settings()

    async def check_unused(self, snapshot: str) -> None:
        """Raise VolumeBusy for the name of a snapshot that is in use outside of this process."""

    async def snapshots_changed(self, snapshots: Sequence[Snapshot]) -> None:
        """Snapshots were taken or deleted; these are there now."""

    async def note(self, failure: str) -> None:
        """Write down, in one line, what is wrong with the mount; "" once nothing is."""
