"""The log-structured volume: batches, extent map, checkpoints, snapshots.

`docs/format.md` is the format; `lifecycle` has the ways in (create, clone, open, delete), `volume` what an open volume
does: `contents` what it can be asked, `committed` how it is made durable. Below them: `datapath` (bytes in and out),
`commit` (making a state durable), `recovery` (rolling forward), `appender` (the head of the log), `extents`, `tree` and
`sharing` (the map, stored and live, and who holds what), `attachment` (the manifest), `space` (what is free).
"""

from fusevol.log.attachment import Claim, check_ready, read_manifest
from fusevol.log.lifecycle import (
    clone_volume,
    create_volume,
    delete_volume,
    describe_volume,
    empty_volume,
    open_volume,
)
from fusevol.log.options import LogOptions
from fusevol.log.records import Manifest, Snapshot
from fusevol.log.scrub import Damage, ScrubReport
from fusevol.log.snapview import SnapshotView
from fusevol.log.usage import Durability, SnapshotUsage, Usage
from fusevol.log.volume import LogVolume

__all__ = [
    "Claim",
    "Damage",
    "Durability",
    "LogOptions",
    "LogVolume",
    "Manifest",
    "ScrubReport",
    "Snapshot",
    "SnapshotUsage",
    "SnapshotView",
    "Usage",
    "check_ready",
    "clone_volume",
    "create_volume",
    "delete_volume",
    "describe_volume",
    "empty_volume",
    "open_volume",
    "read_manifest",
]
