"""Who has a volume open, as the volume itself says: for state directories that share a pool.

Within one state directory its records and locks say who has a volume. Where another one has the same pool - on another
host, or because it was copied - only what is in the pool is seen by both: the manifest names the holder for as long as
a volume is open for writing. It is believed as a lease is: as long as that process cannot be seen to have ended.
"""

import os
from pathlib import Path

import msgspec

from fusevol.errors import VolumeAttachedOnRemoteNode, VolumeBusy
from fusevol.log import Claim
from fusevol.store.processes import Life, Process

__all__ = ["claim"]


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    """home: path of the state directory. place: its device and inode, which it has under any path."""

    process: Process
    home: str
    place: str

    def shares_records_with(self, other: "_Holder") -> bool:
        return (self.place, self.process.machine) == (other.place, other.process.machine)


def claim(volume_id: str, process: Process, home: Path, *, force: bool) -> Claim:
    """The claim of a process of a state directory. force: on what a process holds that cannot be seen from here, too.

    It is refused with VolumeBusy, or VolumeAttachedOnRemoteNode where the holder cannot be seen.
    """
    there = os.stat(home)
    own = _Holder(process=process, home=str(home), place=f"{there.st_dev}:{there.st_ino}")

    def admit(text: str) -> None:
        try:
            holder = msgspec.json.decode(text, type=_Holder)
        except msgspec.MsgspecError:
            # Of a later version.
            life, by = Life.UNKNOWN, "another process"
        else:
            if holder.shares_records_with(own):
                return
            life, by = holder.process.life, f"{holder.process} with the state directory {holder.home}"
        if life is Life.RUNS:
            raise VolumeBusy(f'volume "{volume_id}" is in use by {by}', hint="unmount it there")
        if life is Life.UNKNOWN and not force:
            raise VolumeAttachedOnRemoteNode(
                f'volume "{volume_id}" is in use by {by}, which cannot be seen from here',
                hint=f"unmount it there; or if that has ended for sure: fusevol mount --force {volume_id} PATH",
            )

    return Claim(msgspec.json.encode(own).decode(), admit)
