"""How much room the store has for what a volume holds to grow.

A little is kept back: to delete something takes a few blocks of the log before it gives any back, and a checkpoint,
without which nothing is given back, all the nodes of the map that were changed. Nobody is kept from writing by that;
the filesystem asks here before it lets a file grow.
"""

from collections.abc import Callable
from time import monotonic

from fusevol.backends.base import Backend, Capacity
from fusevol.errors import NoSpace
from fusevol.log.appender import Appender
from fusevol.log.format import BLOCK_SHIFT
from fusevol.log.options import LogOptions

__all__ = ["Room"]

#: For how long, and for how many blocks written, what the store said is taken as true.
_SECONDS = 0.1
_BLOCKS = 1 << 13


class Room:
    """Of one volume. log: None where it is open for reading only, and then nothing is known.

    unsaved: says how many bytes a checkpoint would take now.
    """

    def __init__(
        self, backend: Backend, volume_id: str, options: LogOptions, log: Appender | None, unsaved: Callable[[], int]
    ) -> None:
        self._unsaved = unsaved
        self._backend = backend
        self._volume_id = volume_id
        self._options = options
        self._log = log
        #: When the store was asked, where the log was then, and what was left for files.
        self._asked: tuple[float, int, Capacity | None] = (0.0, 0, None)

    def ask_anew(self) -> None:
        """Something was given back: the store is asked again."""
        self._asked = (0.0, 0, None)

    def capacity(self) -> Capacity | None:
        """What the store can hold in bytes, and how much of that is left for files; None where that is not known.

        The reserve does not count, nor what is on its way to the store, nor what the next checkpoint takes.
        """
        said, since = self._known()
        return None if said is None else Capacity(said.total, max(0, said.free - since))

    def shortage(self) -> NoSpace | None:
        """The error for whoever wants files to grow where the store has no room for that."""
        said, since = self._known()
        if said is None or said.free > since:
            return None
        return NoSpace(
            f'volume "{self._volume_id}" cannot grow: its store is full but for a reserve',
            hint="free space on the store, or delete files or snapshots of the volume",
        )

    def _known(self) -> tuple[Capacity | None, int]:
        """What the store said, not at each write; and how many bytes went into the log since, or a checkpoint takes."""
        log = self._log
        if log is None:
            return None, 0
        at, now = log.head + log.open.count, monotonic()
        asked, then, capacity = self._asked
        if now - asked > _SECONDS or not 0 <= at - then < _BLOCKS:
            capacity, then = self._backend.capacity(self._volume_id), at
            if capacity is not None:
                reserve = min(self._options.reserve_bytes, capacity.total // 16)
                capacity = Capacity(capacity.total, capacity.free - log.unstored - reserve)
            self._asked = now, then, capacity
        return capacity, (at - then << BLOCK_SHIFT) + self._unsaved()
