"""Copying: the live tree of one volume is turned into what a snapshot of another one holds, in whatever pools they are.

Only what was written in between is copied, where both volumes have an earlier snapshot of the same content. While it
lasts the live tree is neither: `LogVolume.become` keeps others from it. A copy that was interrupted goes on where the
last barrier left it, by what the target itself has changed since that earlier snapshot.
"""

from collections.abc import Callable

import trio

from fusevol.errors import CorruptData, FusevolError
from fusevol.log.difference import leaf_of, rewritten, rewritten_leaves
from fusevol.log.format import BLOCK_SHIFT, FANOUT_BITS
from fusevol.log.runs import runs_of_marks
from fusevol.log.snapview import SnapshotView
from fusevol.log.volume import LogVolume

__all__ = ["Copier", "Progress"]

#: Called with the bytes that are there, and about how many there will be.
Progress = Callable[[int, int], None]

#: Leaves at once, each of up to 4 MiB: what is far away takes its time for each.
_AT_ONCE = 8
#: Bytes, and seconds, after which what was copied is made durable: so much is copied again after a crash.
_BARRIER, _BARRIER_SECONDS = 256 << 20, 10.0


class Copier:
    """One snapshot on its way.

    base, goal: snapshots of the source; the target has what `base` holds as its own snapshot `there`. Both are None
    where the target starts with nothing. target: its live tree is as `there`, but for what an earlier attempt to get
    to the same goal from the same base has done.
    """

    def __init__(
        self, base: SnapshotView | None, goal: SnapshotView, there: SnapshotView | None, target: LogVolume
    ) -> None:
        self._base = base
        self._goal = goal
        self._there = there
        self._target = target
        self._done = self._unsynced = 0
        self._synced = trio.current_time()
        #: Bytes that were copied.
        self.copied = 0

    async def run(self, tell: Progress | None = None) -> None:
        """Copy. It is durable only with the next barrier of the target.

        Raises CorruptData (of the source; or where the target does not have what it was to have), BackendError,
        NoSpace, Fenced. What was copied stays.
        """
        if self._base and self._there and self._base.record.mapped != self._there.record.mapped:
            raise self._differs(f"another snapshot as what it was before, {self._there.record.name}")
        leaves = await rewritten_leaves(self._base, self._goal)
        if not set(leaves).issuperset(await rewritten_leaves(self._there, self._target)):
            raise self._differs("changes that were not on the way there")
        failures: list[FusevolError] = []
        queue = iter(enumerate(leaves, 1))

        async def work() -> None:
            for number, leaf in queue:
                try:
                    await self._copy(leaf)
                except FusevolError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()
                if tell:
                    # How many blocks are in those to come is not looked up for this alone.
                    tell(self._done << BLOCK_SHIFT, self._done * len(leaves) // number << BLOCK_SHIFT)

        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(work)
        if failures:
            raise failures[0]
        if self._target.path.live.mapped != self._goal.record.mapped:
            raise self._differs("blocks that it should not have, or lacks some")

    async def _copy(self, leaf: int) -> None:
        """Have the target's leaf as the goal's."""
        first = leaf << FANOUT_BITS
        wanted = await leaf_of(self._goal, leaf)
        mapped = wanted.words != 0
        differ = await rewritten(self._base, self._goal, leaf)
        there = await rewritten(self._there, self._target, leaf)
        self._done += int((differ & there).sum())
        todo = differ & ~there
        for at, count in runs_of_marks(todo & mapped):
            offset, size = (first + at) << BLOCK_SHIFT, count << BLOCK_SHIFT
            await self._target.write(await self._goal.read(size, offset), offset)
            self.copied += size
            self._unsynced += size
        for at, count in runs_of_marks(todo & ~mapped):
            await self._target.discard(count << BLOCK_SHIFT, (first + at) << BLOCK_SHIFT)
        self._done += int(todo.sum())
        have = await leaf_of(self._target, leaf)
        if ((have.words != 0) != mapped).any() or (have.sums != wanted.sums)[mapped].any():
            raise self._differs(f"other blocks near {first << BLOCK_SHIFT}")
        if self._unsynced >= _BARRIER or trio.current_time() > self._synced + _BARRIER_SECONDS:
            self._unsynced, self._synced = 0, trio.current_time()
            await self._target.flush()

    def _differs(self, how: str) -> CorruptData:
        return CorruptData(
            f'what volume "{self._target.volume_id}" became is not snapshot "{self._goal.record.name}": it has {how}',
            hint="copy to a new volume",
        )
