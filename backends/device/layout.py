"""What is where on a device.

    0                superblock: which device this is, and where the rest begins
    512 KiB          the same once more
    516 KiB          room: how many blocks there are, and how many are free, for who will not wait (8 bytes each)
                     marks: what tells without a lock whether what is known of a volume is so still (8 bytes each)
    1 MiB            journal of the tables
    9 MiB            tables: SQLite's file, a 64th of the device, which is what it takes at worst
    behind it        data, to the end of the device

Numbers are little-endian. What is used of the data, and by which volume, is in the tables: see `catalog`.
"""

import os
import struct
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.errors import CorruptData, InvalidArgument, NotSupported

__all__ = ["MARKS", "MARKS_AT", "ROOM_AT", "Layout", "Region"]

MIB = 1 << 20
_MAGIC = b"FVDEVICE"
_VERSION = 1
#: magic, version, 0, random, journal's offset and size, the tables', where data begins; and their checksum.
_HEAD = struct.Struct("<8sII16sQQQQQ")
_SUM = struct.Struct("<Q")
_COPY = MIB // 2
#: So many of the 80 bytes are those of the copy where the first block is a damaged one of ours.
_ALIKE = 64
ROOM_AT = _COPY + BLOCK
#: Where the marks are, and how many; volumes share them.
MARKS_AT, MARKS = ROOM_AT + 16, 8190
_JOURNAL = 8 * MIB
_SHARE = 64
_LEAST = 32 * MIB


@dataclass(frozen=True, slots=True)
class Region:
    """A range of bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the journal and the tables are, and where data begins; bytes."""

    journal: Region
    tables: Region
    data: int

    @classmethod
    def load(cls, disk: Disk) -> "Layout | None":
        """That of a device; None where it has none. One of the two that is damaged is put in order.

        Raises OSError, CorruptData, NotSupported, VolumeBusy (it is another one's by now).
        """
        if disk.blocks * BLOCK < MIB:
            return None
        # Not what the page cache has: what it failed to write it may take for written.
        first, second = (disk.read_stored(BLOCK, offset)[: _HEAD.size + _SUM.size] for offset in (0, _COPY))
        if _is_whole(first):
            stored = first
        elif _is_whole(second):
            if sum(a == b for a, b in zip(first, second, strict=True)) < _ALIKE:
                disk.check_unused()
                raise CorruptData(
                    f"{disk.path} was one for volumes, and begins with something else: its first block is damaged, "
                    "or others have written there",
                    hint="if nobody has, put its copy there: "
                    f"dd if={disk.path} of={disk.path} bs=4096 skip={_COPY // BLOCK} count=1 conv=notrunc,fsync",
                )
            stored = second
        elif first[:8] == _MAGIC:
            raise CorruptData(f"the first block of {disk.path} is damaged", hint="restore the device from a copy")
        else:
            return None
        _, version, _, _, journal, journal_size, tables, tables_size, data = _HEAD.unpack_from(stored)
        if version != _VERSION:
            raise NotSupported(f"{disk.path} is of version {version}; this program knows version {_VERSION}")
        for offset, found in ((0, first), (_COPY, second)):
            if found != stored and disk.writable:
                disk.write_table(stored, offset)
                disk.sync()
        return cls(Region(journal, journal_size), Region(tables, tables_size), data)

    @classmethod
    def plan(cls, disk: Disk) -> "Layout":
        """One for a new device. Raises InvalidArgument where that is too small or holds something already, OSError."""
        size = disk.blocks * BLOCK
        if size < _LEAST:
            raise InvalidArgument(
                f"{disk.path} has {size} bytes; a device for volumes has at least {_LEAST // MIB} MiB",
                hint="a file in place of a device is made with truncate --size" if not size else None,
            )
        if any(disk.read_stored(MIB, 0)) or any(disk.read_stored(MIB, size - MIB)):
            raise InvalidArgument(
                f"{disk.path} is not empty: there is something in its first or last MiB",
                hint=f"if nothing on it is needed, wipe it: blkdiscard --zeroout {disk.path}, or dd from /dev/zero",
            )
        journal = Region(MIB, _JOURNAL)
        tables = Region(journal.offset + journal.size, max(MIB, size // _SHARE // MIB * MIB))
        return cls(journal, tables, tables.offset + tables.size)

    def store(self, disk: Disk) -> None:
        """Write it, durably: from now on the device is one."""
        journal, tables = self.journal, self.tables
        head = _HEAD.pack(
            _MAGIC, _VERSION, 0, os.urandom(16), journal.offset, journal.size, tables.offset, tables.size, self.data
        )
        # One after the other: what has a copy alone was damaged, or is somebody else's by now.
        for offset in (0, _COPY):
            disk.write_table(head + _SUM.pack(xxh3_64_intdigest(head)), offset)
            disk.sync()


def _is_whole(stored: bytes) -> bool:
    (checksum,) = _SUM.unpack_from(stored, _HEAD.size)
    return stored[:8] == _MAGIC and bool(checksum == xxh3_64_intdigest(stored[: _HEAD.size]))
