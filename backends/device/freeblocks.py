"""Which blocks of a device are nobody's."""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.backends.device.layout import ROOM_AT, Layout
from fusevol.backends.device.tables import Change, Tables
from fusevol.errors import CorruptData

__all__ = ["FreeBlocks"]

T = TypeVar("T")

#: Blocks of the device, and free ones.
_ROOM = struct.Struct("<QQ")


class FreeBlocks(Tables):
    """The table of free runs, which never touch, and how many blocks the device has."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        super().__init__(disk, layout)
        self._total = 0

    def capacity(self) -> tuple[int, int]:
        """How many blocks there are for data, and how many of them are free, as somebody knew last. Does not wait."""
        total, free = self._total, self.free
        # A volume that has no room does nothing, and so would not come to know that others have made some.
        with suppress(OSError):
            told = self.disk.read_cached(_ROOM.size, ROOM_AT)
            if told is not None and any(told):
                total, free = _ROOM.unpack(told)
        return total - self._layout.data // BLOCK, free

    def _tell(self) -> None:
        """Have others know of the room there is. Under the lock."""
        # What it is, the tables say; and who has these wrong for a while does no harm.
        with suppress(OSError):
            if self.disk.writable and self.disk.read(_ROOM.size, ROOM_AT) != (
                room := _ROOM.pack(self._total, self.free)
            ):
                self.disk.write_table(room, ROOM_AT)

    def _transaction(self, group: list[Change[Any]]) -> None:
        super()._transaction(group)
        self._tell()

    def _extend(self) -> None:
        if self.disk.writable:
            with self._begun():
                self._grow()

    def _grow(self) -> None:
        """Have what the device is larger by."""
        blocks, free = self._one("SELECT blocks, free FROM device") or (0, 0)
        self._total, more = self.disk.blocks, self.disk.blocks - blocks
        self._give(blocks, more)
        self.free = free + more
        self._execute("UPDATE device SET blocks = ?, free = ?", (self._total, self.free))

    def choose_free(self, choose: Callable[[Iterator[tuple[int, int]]], T]) -> T:
        """What `choose` makes of the free runs, (address, blocks), longest first; nothing changes meanwhile."""

        def look() -> T:
            rows = self._execute("SELECT address, count FROM free ORDER BY count DESC, address")
            try:
                return choose((address, count) for address, count in rows)
            finally:
                rows.close()

        return self._read(look)

    def if_free(self, address: int, count: int, then: Callable[[], None]) -> None:
        """Call `then` if blocks are free; nothing changes meanwhile."""

        def look() -> None:
            found = self._around(address)
            if found and sum(found) >= address + count:
                then()

        self._read(look)

    def _around(self, address: int) -> tuple[int, int] | None:
        """The free run that begins at or before an address."""
        sql = "SELECT address, count FROM free WHERE address <= ? ORDER BY address DESC LIMIT 1"
        row = self._one(sql, (address,))
        return (row[0], row[1]) if row else None

    def _give(self, address: int, count: int) -> None:
        """Blocks are free from now on. Raises CorruptData where some of them are so already."""
        start, end = address, address + count
        before, after = self._around(address), self._one("SELECT address, count FROM free WHERE address = ?", (end,))
        inside = "SELECT 1 FROM free WHERE address > ? AND address < ? LIMIT 1"
        if (before and sum(before) > address) or self._one(inside, (address, end)):
            raise self._twice(address)
        if before and sum(before) == address:
            start = before[0]
            self._execute("DELETE FROM free WHERE address = ?", (start,))
        if after:
            end += after[1]
            self._execute("DELETE FROM free WHERE address = ?", (after[0],))
        self._execute("INSERT INTO free VALUES (?, ?)", (start, end - start))

    def _take(self, address: int, count: int) -> None:
        """Blocks are not free any more. Raises CorruptData where they are not."""
        found = self._around(address)
        if found is None or sum(found) < address + count:
            raise self._twice(address)
        start, length = found
        self._execute("DELETE FROM free WHERE address = ?", (start,))
        if start < address:
            self._execute("INSERT INTO free VALUES (?, ?)", (start, address - start))
        if address + count < start + length:
            self._execute("INSERT INTO free VALUES (?, ?)", (address + count, start + length - address - count))
        self.free -= count

    def _twice(self, address: int) -> CorruptData:
        return CorruptData(
            f"the tables of {self.disk.path} contradict themselves about block {address}; nothing was changed",
            hint="restore the device from a copy",
        )
