"""The head of the log: the batch being filled, batches on their way to the backend, and the barrier.

Everything here that changes state does so without an await, so that a cancellation leaves nothing half
done. Batches are pushed by tasks of the volume's own nursery, or by the store itself: the task that filled one, or
waits for it, may be cancelled, the push goes on.
"""

import mmap
from collections.abc import Awaitable, Callable
from time import monotonic

import trio

from fusevol.backends.base import Backend, Started
from fusevol.errors import BackendError, FusevolError, NoSpace
from fusevol.log.batch import BUFFER_BYTES, Batch
from fusevol.log.format import BATCH_BLOCKS, BLOCK, BLOCK_SHIFT, EPOCH_BLOCKS, KIND_DATA, KIND_MAP, KIND_MARK
from fusevol.log.mutex import Mutex

__all__ = ["Appender"]

#: Blocks to keep free at the end of an epoch: a batch that no longer fits must find the next epoch claimed.
_LARGEST = BUFFER_BYTES // BLOCK
_POOL = 6


class Appender:
    """Appends batches at the head of the log of one attached volume.

    head: address of the next batch's header. sequence: of the last sealed batch.
    durable: every batch up to this sequence is on stable storage, and was while this writer held the volume.
    barrier, last_data: sequences of the last sealed batch that has the barrier flag, that is of kind data.
    """

    def __init__(
        self,
        backend: Backend,
        volume_id: str,
        uuid: bytes,
        nursery: trio.Nursery,
        confirm: Callable[[], Awaitable[None]],
        *,
        head: int,
        sequence: int,
        durable: int,
        in_flight: int,
    ) -> None:
        self.backend = backend
        self.volume_id = volume_id
        self.uuid = uuid
        self.sequence = sequence
        self.durable = self.barrier = durable
        self.jump: int | None = None
        #: Whether nobody would have to wait for a write that holds up the loop; for who serves others on it to set.
        self.alone: Callable[[], bool] = lambda: False
        self._nursery = nursery
        self._confirm = confirm
        self._in_flight = in_flight
        self._pool: list[mmap.mmap] = []
        self._sealed: dict[int, Batch] = {}
        self._moved = trio.Event()
        self._flushing = Mutex()
        self._queue = trio.Lock()
        self._broken: FusevolError | None = None
        self._failed = 0
        self._pushing: set[trio.CancelScope] = set()
        self._unpushed: list[Batch] = []
        self._stopped = False
        self.last_data = 0
        self._opened = 0.0
        self._unflushed: list[tuple[int, int, float]] = []
        self.open = Batch(self._buffer(), head)
        #: (address, blocks) of headers and tables sealed since the last checkpoint's barrier.
        self.overhead: list[tuple[int, int]] = []
        #: Blocks sealed since then that are not data.
        self.meta_blocks = 0
        #: Blocks sealed since then, all told.
        self.since_checkpoint = 0

    # -- state ------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """Address of the next batch's header."""
        return self.open.base

    @property
    def clean(self) -> bool:
        """Whether the last barrier covers everything."""
        return self.open.empty and self.last_data <= self.barrier

    @property
    def unflushed(self) -> tuple[int, float]:
        """Bytes not yet durable, and the age in seconds of the oldest of them (0.0 where there are none)."""
        size = sum(item[1] for item in self._unflushed) + (self.open.count << BLOCK_SHIFT)
        since = self._unflushed[0][2] if self._unflushed else self._opened if not self.open.empty else None
        return size, monotonic() - since if since is not None else 0.0

    @property
    def unstored(self) -> int:
        """Bytes on their way to the backend, or still gathered here."""
        return sum(batch.total for batch in self._sealed.values()) + self.open.count << BLOCK_SHIFT

    def check_usable(self) -> None:
        """Raise why this writer must stop for good, if so."""
        if self._broken is not None:
            raise self._broken

    def check(self) -> None:
        """Raise why nothing more can be written, if so."""
        self.check_usable()
        if self._failed:
            raise next(batch.error for batch in self._sealed.values() if batch.error is not None)

    def stop(self) -> None:
        """Give up what is on its way: the volume is being left."""
        self._stopped = True
        for scope in self._pushing:
            scope.cancel()

    def fail(self, error: FusevolError) -> None:
        """From now on every write and flush raises `error`: the state of the store is not known any more."""
        if self._broken is None:
            self._broken = error
        self._wake()

    # -- filling ----------------------------------------------------------------------------------

    def pending(self, address: int, count: int) -> memoryview | None:
        """The bytes of blocks that are not known to be stored yet, or None where they are.

        A run of blocks of one data batch is either pending as a whole or not at all.
        """
        if address >= self.open.base:
            return self.open.payload(address, count)
        for batch in self._sealed.values():
            if batch.base <= address < batch.base + batch.total:
                return batch.payload(address, count)
        return None

    def oldest_pending(self) -> int:
        """Everything below this address is stored, if not durable."""
        return min((batch.base for batch in self._sealed.values()), default=self.open.base)

    def room(self) -> int:
        """Blocks that can be appended now; seals the batch when it is full."""
        room = self.open.room()
        if not room:
            self.seal()
            room = self.open.room()
        return room

    def note_open(self) -> None:
        """Remember when the open batch got its first content."""
        self._opened = monotonic()

    def seal(self, *, barrier: bool = False, push: bool = True) -> Batch:
        """Seal the open batch, start its push, open the next. push: False to leave that to a `flush`, which follows."""
        batch = self.open
        if batch.base % EPOCH_BLOCKS + 2 * _LARGEST > EPOCH_BLOCKS and self.jump is None:
            raise NoSpace(
                f'the log of volume "{self.volume_id}" is at the end of its epoch',
                hint="flush, then write again",
            )
        self._seal(batch, KIND_DATA, barrier=barrier)
        self.last_data = batch.sequence
        if barrier:
            self.barrier = batch.sequence
        if push:
            self._nursery.start_soon(self._push, batch)
        else:
            self._unpushed.append(batch)
        return batch

    def begin_map(self) -> int:
        """Seal what is open; return the address at which `append_map`, called without an await, will put things."""
        if not self.open.empty:
            self.seal()
        return self.open.first

    def append_map(self, payload: list[bytes], checkpoint: int) -> tuple[int, int]:
        """Append nodes or records, each padded to whole blocks, as a map batch.

        Returns the address of the first one and the batch's sequence.
        """
        first = self.begin_map()
        blocks = sum(map(len, payload)) >> BLOCK_SHIFT
        batch = self.open
        if blocks > BATCH_BLOCKS:
            batch = Batch(mmap.mmap(-1, (blocks + 1) * BLOCK), batch.base)
        at = BLOCK
        for data in payload:
            batch.view[at : at + len(data)] = data
            at += len(data)
        batch.count = blocks
        self._seal(batch, KIND_MAP, checkpoint=checkpoint)
        self._nursery.start_soon(self._push, batch)
        return first, batch.sequence

    def mark(self) -> None:
        """Append a mark, so that a later recovery knows how far the log was durable."""
        if self.open.empty and self._broken is None and not self._failed:
            batch = self.open
            self._seal(batch, KIND_MARK)
            self._nursery.start_soon(self._push, batch)

    def _seal(self, batch: Batch, kind: int, *, barrier: bool = False, checkpoint: int = 0) -> None:
        jump, self.jump = self.jump, None
        following = batch.seal(
            self.uuid,
            self.sequence + 1,
            self.durable,
            kind=kind,
            barrier=barrier,
            checkpoint=checkpoint,
            jump=jump,
        )
        self.sequence = batch.sequence
        self.overhead.append((batch.base, 1))
        if table := batch.total - 1 - batch.count:
            self.overhead.append((batch.first + batch.count, table))
        self.since_checkpoint += batch.total
        self.meta_blocks += batch.total - batch.count if kind == KIND_DATA else batch.total
        self._sealed[batch.sequence] = batch
        if kind == KIND_DATA:
            self._unflushed.append((batch.sequence, batch.total << BLOCK_SHIFT, monotonic()))
        if batch is self.open:
            self.open = Batch(self._buffer(), following)
        else:
            self.open.move(following)

    def _buffer(self) -> mmap.mmap:
        return self._pool.pop() if self._pool else mmap.mmap(-1, BUFFER_BYTES)

    def new_checkpoint(self) -> tuple[list[tuple[int, int]], int]:
        """Start counting anew: returns overhead and meta blocks since the last call."""
        counted = self.overhead, self.meta_blocks
        self.overhead, self.meta_blocks, self.since_checkpoint = [], 0, 0
        return counted

    # -- pushing ----------------------------------------------------------------------------------

    async def _push_here(self, batch: Batch) -> None:
        """Push a batch and wait for it, where that needs no task: to have one do it takes as long as a disk takes."""
        try:
            started = self.backend.start_write(
                self.volume_id, batch.bytes(), batch.base << BLOCK_SHIFT, alone=self.alone()
            )
        except Exception:  # noqa: BLE001  # `write` will fail with the same, and its error is kept
            started = None
        if started is None:
            self._nursery.start_soon(self._push, batch)
            return
        try:
            await self._store(batch, started)
        except trio.Cancelled:
            self._nursery.start_soon(self._push, batch, started)
            raise

    async def _push(self, batch: Batch, started: Started | None = None) -> None:
        # Shielded: who leaves a volume because of a cancellation still flushes, and waits for this.
        with trio.CancelScope(shield=True) as scope:
            if started:
                # The kernel has it, and its buffer.
                await self._store(batch, started)
                return
            if self._stopped:
                return
            self._pushing.add(scope)
            try:
                await self._store(batch)
            finally:
                self._pushing.remove(scope)

    async def _store(self, batch: Batch, started: Started | None = None) -> None:
        data = batch.bytes()
        try:
            if started:
                written = await started.finished()
            else:
                written = await self.backend.write(self.volume_id, data, batch.base << BLOCK_SHIFT)
            if written != len(data):
                raise BackendError(f'the backend wrote {written} of {len(data)} bytes of volume "{self.volume_id}"')
        except Exception as error:  # noqa: BLE001  # a task that dies would take the whole volume with it
            if not isinstance(error, FusevolError):
                error = BackendError(f'writing to volume "{self.volume_id}" failed: {error!r}')
            batch.error = error
            self._failed += 1
        else:
            del self._sealed[batch.sequence]
            data.release()
            if len(batch.buffer) == BUFFER_BYTES and len(self._pool) < _POOL:
                self._pool.append(batch.buffer)
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def retry(self) -> None:
        """Push the batches once more whose push failed."""
        for batch in self._sealed.values():
            if batch.error is not None:
                batch.error = None
                self._nursery.start_soon(self._push, batch)
        self._failed = 0

    def full(self) -> bool:
        """Whether as many batches are on their way as may be."""
        return len(self._sealed) >= self._in_flight

    async def throttle(self) -> None:
        """Wait until there is room for another batch on its way. Raises what a push failed with.

        Whoever came first goes on first: what is written in one go had better be read in one go.
        """
        if self.full() or self._queue.locked():
            async with self._queue:
                while self.full():
                    self.check()
                    await self._moved.wait()
        self.check()

    async def _pushed(self, sequence: int) -> None:
        while any(number <= sequence for number in self._sealed):
            self.check()
            await self._moved.wait()
        self.check_usable()

    # -- barrier ----------------------------------------------------------------------------------

    async def flush(self, sequence: int) -> None:
        """Return when every batch up to `sequence` is durable and this writer still held the volume after that.

        Concurrent callers share one backend flush. Batches whose push failed are pushed once more.
        Raises BackendError, NoSpace, Fenced.
        """
        while self._unpushed:
            await self._push_here(self._unpushed.pop())
        async with self._flushing:
            if self.durable >= sequence:
                return
            self.check_usable()
            if self._failed:
                self.retry()
            goal = max(sequence, self.barrier)
            await self._pushed(goal)
            try:
                await self.backend.flush(self.volume_id)
            except FusevolError as error:
                # What a failed flush lost cannot be known, and the next one may claim success (as fsync does).
                self.fail(
                    BackendError(
                        f'volume "{self.volume_id}" could not be flushed: {error}',
                        hint="detach and attach it again; it returns to its last barrier",
                    )
                )
                raise
            await self._confirm()
            self.durable = goal
            self._unflushed = [item for item in self._unflushed if item[0] > goal]
