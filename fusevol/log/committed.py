"""What is written to a volume made durable: barriers, checkpoints, and the space that these give back."""

from collections.abc import Callable

import trio

from fusevol.backends.base import Backend
from fusevol.errors import Fenced, FusevolError, NoSpace, ReadOnly
from fusevol.log.appender import Appender
from fusevol.log.attachment import Attachment, Diverged
from fusevol.log.checkpoint import Frozen
from fusevol.log.commit import Change, Committer
from fusevol.log.contents import VolumeContents
from fusevol.log.extents import ExtentMap
from fusevol.log.format import BLOCK_SHIFT, EPOCH_BLOCKS, FREE_ENTRY, FULL_NODE_BLOCKS
from fusevol.log.options import LogOptions
from fusevol.log.reader import BlockReader
from fusevol.log.room import Room
from fusevol.log.state import State
from fusevol.log.tree import NodeCache

__all__ = ["CommittedVolume", "Prepare"]

#: Writes, without an await, what is to be in front of a barrier.
Prepare = Callable[[], None] | None

#: Bytes of the largest node of the map there is: one that lacks an entry, and so has to say which.
_NODE = (FULL_NODE_BLOCKS + 1) << BLOCK_SHIFT
#: Dead bytes that are worth a checkpoint of their own when the store is full.
_RELIEF = 1 << 20


class CommittedVolume(VolumeContents):
    """A volume that can be flushed. See `DataPath` for `write`, `discard`, and those that do not wait."""

    def __init__(
        self, backend: Backend, volume_id: str, reader: BlockReader, cache: NodeCache, live: ExtentMap, state: State,
        options: LogOptions, log: Appender | None = None, attachment: Attachment | None = None,
        nursery: trio.Nursery | None = None,
    ) -> None:  # fmt: skip
        super().__init__(volume_id, reader, cache, live, state, log)
        self._backend = backend
        self._options = options
        self._attachment = attachment
        self._nursery = nursery
        #: Those of the backend.
        self.traits = backend.traits
        self.room = Room(backend, volume_id, options, log, self._unsaved)
        self._reclaiming = trio.Lock()
        self._idle = trio.Event()
        self.abandoned = False
        #: Called right before every barrier that comes without a `prepare` of its own; see `flush`.
        self.prepare: Prepare = None
        #: Why the last checkpoint in the background failed; None once one succeeded.
        self.background_error: FusevolError | None = None
        if log and attachment:
            self._committer = Committer(log, attachment, reader, cache, state)
        path = self.path
        self.write, self.write_nowait, self.write_all_nowait = path.write, path.write_nowait, path.write_all_nowait
        self.throttle, self.discard, self.discard_nowait = path.throttle, path.discard, path.discard_nowait

    def check(self) -> None:
        """Raise what the next write would be refused with, if so."""
        self._writable().check()

    def fail(self, error: FusevolError) -> None:
        """Take no more writes and make no more barriers, but raise `error`."""
        self._writable().fail(error)

    def hold_up_while(self, alone: Callable[[], bool]) -> None:
        """Let a flush hold up the loop for a write, where that is quick, while `alone` says that nobody would wait."""
        self._writable().alone = alone

    # -- barrier ----------------------------------------------------------------------------------

    async def flush(self, prepare: Prepare = None) -> None:
        """Make everything written so far durable, as one barrier: recovery finds all of it, or what was before.

        prepare: called right before the barrier, to write what belongs in front of it; nothing comes in between.

        Raises BackendError, NoSpace, Fenced. After NoSpace the data is kept, and another flush tries again;
        after a failed flush of the backend, or Fenced, the volume takes no more writes.
        """
        log = self._writable()
        await self._before_barrier()
        if self.path.gate is None:  # else nothing is written until a restore is through
            prepare = prepare or self.prepare
        if prepare:
            log.retry()
            prepare()
        if not log.clean:
            log.seal(barrier=True, push=False)
        if log.durable >= log.barrier:
            log.check_usable()
            return
        if self._nursery and self._checkpoint_due() and self._commits.value:
            self._commits.acquire_nowait()
            self._nursery.start_soon(self._checkpoint_in_background, self._freeze())
        try:
            try:
                await log.flush(log.barrier)
            except NoSpace:
                # What no commit is needed for, to give it back: once that is done the log may find room.
                if not self.state.free.blocks:
                    raise
                await self._reclaim(0)
                await log.flush(log.barrier)
        except FusevolError as error:
            self._note(error)
            raise
        self._idle.set()

    async def _before_barrier(self) -> None:
        """What must be done before the next barrier is sealed: know which tree it stands on, and have room for it."""
        log = self._writable()
        if self._attachment:
            try:
                await self._attachment.settle()
            except FusevolError as error:
                self._note(error)
                raise
        if log.head % EPOCH_BLOCKS > EPOCH_BLOCKS // 2 and log.jump is None and self._attachment:
            log.jump = await self._attachment.claim_next_epoch()

    def _note(self, error: FusevolError) -> None:
        if isinstance(error, Fenced | Diverged) and self._log:
            self._log.fail(error)

    # -- checkpoints ------------------------------------------------------------------------------

    def _checkpoint_due(self) -> bool:
        log, options = self._writable(), self._options
        return (
            log.since_checkpoint << BLOCK_SHIFT >= options.checkpoint_bytes
            or len(self.path.live.dirty) >= options.dirty_leaves
        )

    def _freeze(self) -> Frozen:
        """Take the state as it is at the barrier just sealed. No await since then, and none here."""
        log, state, path = self._writable(), self.state, self.path
        since = log.since_checkpoint
        overhead, meta = log.new_checkpoint()
        state.number += 1
        state.meta_blocks += meta
        state.data_blocks += path.take_data_blocks()
        return Frozen(
            number=state.number,
            sequence=log.sequence,
            position=log.head,
            leaves=path.live.freeze(),
            dead=path.take_dead(),
            overhead=overhead,
            mapped=path.live.mapped,
            inherited=path.live.inherited,
            data_blocks=state.data_blocks,
            meta_blocks=state.meta_blocks,
            since=since,
        )

    async def _commit(self, frozen: Frozen, change: Change) -> None:
        try:
            self.path.live = await self._committer.run(self.path.live, frozen, change)
        except BaseException as error:
            self.path.put_back_dead(frozen.dead)
            self.state.garbage += frozen.overhead
            self._writable().since_checkpoint += frozen.since
            if isinstance(error, FusevolError):
                self._note(error)
            raise

    async def _checkpoint_in_background(self, frozen: Frozen) -> None:
        try:
            await self._commit(frozen, Change())
            self.background_error = None
        except FusevolError as error:
            self.background_error = error
        finally:
            self._commits.release()
        if self.background_error is None:
            await self._reclaim_surplus()

    async def checkpoint(self) -> None:
        """Flush, and write a checkpoint: the next open has nothing to roll forward. Raises as `flush` does."""
        await self._change(lambda: Change())
        await self._reclaim_surplus()

    async def _change(self, decide: Callable[[], Change], *, gate: bool = False, prepare: Prepare = None) -> None:
        """Run one commit; `decide` is called at the barrier, and may raise to give up; `prepare` as for `flush`."""
        self._writable()
        async with self._commits:
            try:
                decide()
                await self._before_barrier()
                change = decide()
                self._writable().retry()
                prepare = prepare or self.prepare
                if prepare:
                    prepare()
                log = self._writable()
                if not log.clean:
                    log.seal(barrier=True)
                if gate:
                    self.path.gate = trio.Event()
                await self._commit(self._freeze(), change)
            finally:
                if self.path.gate is not None:
                    self.path.gate.set()
                    self.path.gate = None
        self._idle.set()

    # -- space ------------------------------------------------------------------------------------

    def _slack(self) -> int:
        """How many blocks that nobody needs are kept back."""
        return max(self._options.slack_bytes >> BLOCK_SHIFT, self.path.live.mapped // 8)

    async def _reclaim_surplus(self) -> None:
        try:
            await self._reclaim(self._slack())
        except FusevolError as error:
            self.background_error = error

    async def _reclaim(self, keep: int) -> None:
        """Give back the longest free runs, until at most `keep` blocks (or half as much, once started) remain."""
        state = self.state
        async with self._reclaiming:
            if state.free.blocks <= keep:
                return
            runs = state.free.longest(keep // 2)
            given: list[tuple[int, int]] = []
            await self.path.readers.passed()
            try:
                for address, count in runs:
                    await self._backend.discard(self.volume_id, count << BLOCK_SHIFT, address << BLOCK_SHIFT)
                    given.append((address, count))
            finally:
                state.free.remove(given)
                self.room.ask_anew()

    def _unsaved(self) -> int:
        """How many bytes a checkpoint takes now: the changed leaves, the nodes above them, and the free list."""
        return self.path.live.unsaved * _NODE + len(self.state.free.runs) * FREE_ENTRY.size

    async def reclaim(self) -> None:
        """Checkpoint, and give back all dead space there is. Raises as `flush` does."""
        await self._give_back()
        # The free list as it is stored has it still, and who looks from outside would count it.
        await self._give_back()

    async def _give_back(self) -> None:
        await self._reclaim(0)  # the checkpoint may need that room
        await self._change(lambda: Change())
        await self._reclaim(0)

    async def relieve(self) -> None:
        """Where the store is all but full, give back what is dead, if that is something. Notes what that fails with.

        What was kept back for a checkpoint is room again after one as well.
        """
        if self.room.shortage() is None:
            return
        if (self.state.free.blocks + len(self.path.dead()) << BLOCK_SHIFT) + self._unsaved() < _RELIEF:
            return
        try:
            await self._give_back()
            self.background_error = None
        except FusevolError as error:
            self.background_error = error

    async def _tidy_when_idle(self) -> None:
        """After a while without writes, leave proof that the last flush was complete; later, give back what is dead."""
        log = self._writable()
        while True:
            await self._idle.wait()
            self._idle = trio.Event()
            sequence = log.sequence
            await trio.sleep(self._options.idle_seconds)
            if log.sequence == sequence and log.clean and log.durable >= sequence:
                log.mark()
            if len(self.path.dead()) + self.state.free.blocks <= self._slack():
                continue
            with trio.move_on_after(self._options.settle_seconds):
                await self._idle.wait()
                continue
            try:
                for _ in range(2):  # as in `reclaim`
                    await self._change(lambda: Change())
                    self.background_error = None
                    await self._reclaim_surplus()
            except FusevolError as error:
                self.background_error = error
            if self.background_error is not None:
                # Not again before something was written.
                self._idle = trio.Event()

    def _writable(self) -> Appender:
        if self._log is None:
            raise ReadOnly(f'volume "{self.volume_id}" is open for reading only')
        return self._log
