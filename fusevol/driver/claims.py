"""Who has a volume open, and what it is, as the volume itself says: for state directories that share a pool.

Within one state directory its records and locks say who has a volume. Where another one has the same pool - on another
host, or because it was copied - only what is in the pool is seen by both: the manifest names the holder for as long as
a volume is open for writing. It is believed as a lease is: as long as that process cannot be seen to have ended.
Beside it stands the volume's record, for whoever has none (`importing`).
"""

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from fusevol.api import Volume
from fusevol.driver.about import about
from fusevol.errors import VolumeAttachedOnRemoteNode, VolumeBusy
from fusevol.log import Claim
from fusevol.store.processes import Life, Process

__all__ = ["Held", "claim", "held"]


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    """home: path of the state directory. place: its device and inode, which it has under any path."""

    process: Process
    home: str
    place: str

    def shares_records_with(self, other: "_Holder") -> bool:
        return (self.place, self.process.machine) == (other.place, other.process.machine)


def _own(process: Process, home: Path) -> _Holder:
    there = os.stat(home)
    return _Holder(process=process, home=str(home), place=f"{there.st_dev}:{there.st_ino}")


class Held(NamedTuple):
    """Whether the holder that a manifest names still runs, what errors call it, and whether its records are these."""

    life: Life
    by: str
    here: bool

    def refuse(self, volume: str, *, force: bool, how: str) -> None:
        """Raise VolumeBusy, or VolumeAttachedOnRemoteNode without `force`; how: the command that forces it."""
        if self.life is Life.RUNS:
            raise VolumeBusy(f'volume "{volume}" is in use by {self.by}', hint="unmount it there")
        if self.life is Life.UNKNOWN and not force:
            raise VolumeAttachedOnRemoteNode(
                f'volume "{volume}" is in use by {self.by}, which cannot be seen from here',
                hint=f"unmount it there; or if that has ended for sure: {how}",
            )


def held(text: str, process: Process, home: Path) -> Held:
    """What a manifest says of its holder to a process of a state directory. Nobody is gone."""
    if not text:
        return Held(Life.GONE, "", False)
    try:
        holder = msgspec.json.decode(text, type=_Holder)
    except msgspec.MsgspecError:
        # Of a later version.
        return Held(Life.UNKNOWN, "another process", False)
    by = f"{holder.process} with the state directory {holder.home}"
    return Held(holder.process.life, by, holder.shares_records_with(_own(process, home)))


def claim(volume: Volume, process: Process, home: Path, *, force: bool) -> Claim:
    """The claim of a process of a state directory. force: on what a process holds that cannot be seen from here, too.

    It is refused with VolumeBusy, or VolumeAttachedOnRemoteNode where the holder cannot be seen.
    """

    def admit(text: str) -> None:
        holder = held(text, process, home)
        if not holder.here:
            holder.refuse(volume.id, force=force, how=f"fusevol mount --force {volume.id} PATH")

    return Claim(msgspec.json.encode(_own(process, home)).decode(), admit, about(volume))
