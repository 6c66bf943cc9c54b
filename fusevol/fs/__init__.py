"""The POSIX filesystem inside a volume: inodes and names in SQLite, file data in the log.

`filesystem` is the way in, on top of `attributes` and `readonly`; below these are `names` (directories), `data`
(content), `inodes`, `database`, and `vfs`, which puts SQLite's file into the volume. `layout` has the schema and says
what is where.
"""

from fusevol.fs.arguments import Caller, Changes
from fusevol.fs.filesystem import Filesystem
from fusevol.fs.opening import fetch_metadata, leave_filesystem, load_filesystem, open_filesystem
from fusevol.fs.readonly import ReadOnlyFilesystem, StatFs, open_snapshot
from fusevol.fs.vfs import Absent, Fetches

__all__ = [
    "Absent",
    "Caller",
    "Changes",
    "Fetches",
    "Filesystem",
    "ReadOnlyFilesystem",
    "StatFs",
    "fetch_metadata",
    "leave_filesystem",
    "load_filesystem",
    "open_filesystem",
    "open_snapshot",
]
