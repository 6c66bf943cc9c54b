"""What a volume may hold: data by the block, and metadata where there is much of it.

Names, attributes and files so small that they have no block are rows of the database. These go on top of the volume's
size, up to an allowance; what is beyond that counts, so that no number of small files takes up ever more. How much it
is, is known at each commit; in between what is added is estimated, rather too high: a commit then tells.
"""

from fusevol.fs.database import Database
from fusevol.fs.layout import BLOCK, TOTAL_BLOCKS

__all__ = ["ROW_BYTES", "Quota"]

#: About what an inode takes in the database, with its name.
ROW_BYTES = 256
#: Blocks of metadata that do not count; or a part of the volume's size, if that is more.
_ALLOWANCE = 256
_ALLOWANCE_SHIFT = 4
_SHIFT = BLOCK.bit_length() - 1
#: Shown where nothing is known.
_UNLIMITED = 1 << 38


class Quota:
    """In blocks. limit: what may be taken, 0 for all there is. used: data blocks mapped by all files."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.limit = database.counter("size", 0) >> _SHIFT
        self.used = database.total("blocks", TOTAL_BLOCKS)
        self._grown, self._shrank = 0, False

    def grown(self, size: int) -> None:
        """The metadata will be about so many bytes more with the next commit."""
        self._grown += size

    def shrank(self) -> None:
        """The metadata will be less with the next commit."""
        self._shrank = True

    def committed(self) -> None:
        """It is known again how much the metadata is."""
        self._grown, self._shrank = 0, False

    @property
    def _estimated(self) -> int:
        """Blocks for what has grown: rows that become longer leave their pages half full."""
        return 2 * self._grown >> _SHIFT

    def _beyond(self, estimated: int = 0) -> int:
        """How many blocks of metadata count."""
        if not self.limit:
            return 0
        return max(0, self._database.pages + estimated - max(_ALLOWANCE, self.limit >> _ALLOWANCE_SHIFT))

    def space(self, left: int | None) -> tuple[int, int]:
        """How many blocks there are, and how many of them are free. left: what the store has room for, if it says."""
        taken, blocks = self.used + self._beyond(), self.limit or _UNLIMITED
        free = max(0, blocks - taken)
        if left is not None:
            free = min(free, left)
            blocks = self.limit or taken + free
        return blocks, free

    def allows(self, count: int) -> bool:
        """Whether so many more data blocks may be mapped."""
        return not self.limit or self.used + self._beyond() + count <= self.limit

    @property
    def crowded(self) -> bool:
        """Whether there may be no more metadata, by what is estimated."""
        beyond = self._beyond(self._estimated)
        return bool(beyond) and self.used + beyond >= self.limit

    def doubtful(self, count: int = 1) -> bool:
        """Whether there seems to be no room for so many blocks, and a commit may show that there is."""
        beyond = self._beyond(self._estimated)
        return bool(beyond and (self._grown or self._shrank)) and self.used + beyond + count > self.limit
