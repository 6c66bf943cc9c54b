"""A random life of a few volumes: everything that can be done to them, by a seed, along with the model.

    workload = Workload(backend, seed)
    await workload.run(steps=200)

Whatever is read meanwhile is compared with the model. `workload.volumes` has, for each volume, its model and
its timeline, from which `fusevol.testing.crash` tells what a power cut may leave.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from fusevol.backends.base import Backend
from fusevol.errors import VolumeHasSnapshots
from fusevol.log import LogOptions, LogVolume, clone_volume, create_volume, delete_volume, open_volume
from fusevol.testing.model import BLOCK, LAST_BLOCK, ZONES, State, VolumeModel
from fusevol.testing.small import random_options
from fusevol.testing.timeline import AUTO, Barrier, Timeline, capture, verify, verify_space

__all__ = ["Known", "Workload"]

_MOST_SNAPSHOTS = 7
_MOST_VOLUMES = 4


@dataclass(slots=True, eq=False)
class Attached:
    """A volume that a task holds open until `leave` is set."""

    volume: LogVolume
    flushes: trio.Nursery
    leave: trio.Event = field(default_factory=trio.Event)
    left: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class Known:
    """A volume as the workload knows it. Positions: when its making began and returned, and its deletion."""

    model: VolumeModel
    begun: int
    timeline: Timeline = field(init=False)
    origin: tuple[str, str] | None = None
    made: int | None = None
    deleting: int | None = None
    deleted: int | None = None
    attached: Attached | None = None

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.model.volume_id)

    @property
    def volume(self) -> LogVolume:
        """The open volume."""
        assert self.attached is not None
        return self.attached.volume


class Workload:
    """Volumes and their models, and the steps that change both.

    volumes: what the backend has already. check_every: after so many steps everything is verified (0: never).
    clock: gives positions for the timelines (the length of a journal); a counter if not given.
    """

    def __init__(
        self, backend: Backend, seed: object, *, options: LogOptions | None = None,
        clock: Callable[[], int] | None = None, check_every: int = 25, volumes: dict[str, Known] | None = None,
    ) -> None:  # fmt: skip
        self.backend = backend
        self.choose = random.Random(f"{seed}")
        self.options = options or random_options(self.choose)
        self.volumes = dict(volumes or {})
        self.steps: list[str] = []
        self._clock = clock or self._count
        self._ticks = 0
        self._made = max((int(volume_id[1:]) for volume_id in self.volumes), default=0)
        #: Differs from workload to workload, so that names do.
        self._named = self.choose.randrange(1 << 32)
        self._check_every = check_every
        self._nursery: trio.Nursery | None = None
        self._weights: list[tuple[int, Callable[[Known], Awaitable[None]]]] = [
            (30, self._write), (12, self._write_unaligned), (8, self._discard), (2, self._discard_wide),
            (12, self._read), (12, self._flush), (6, self._flush_aside), (2, self._flush_cancelled),
            (3, self._checkpoint), (2, self._reclaim), (6, self._snapshot), (3, self._restore),
            (4, self._delete_snapshot), (2, self._clone), (1, self._delete_volume), (2, self._reopen),
            (2, self._reopen_abandoned), (2, self._idle), (1, self._another_epoch), (2, self._look_on),
        ]  # fmt: skip

    def _count(self) -> int:
        self._ticks += 1
        return self._ticks

    async def run(self, steps: int) -> None:
        """Make a volume if there is none, take so many steps, and close everything."""
        async with trio.open_nursery() as self._nursery:
            if not self.existing:
                await self._create()
            for step in range(1, steps + 1):
                await self.step()
                if self._check_every and not step % self._check_every:
                    await self.check()
            await self._leave()

    async def settle(self) -> None:
        """Attach every volume, and show that it is what it may be, whole, and good for all uses."""
        async with trio.open_nursery() as self._nursery:
            for known in self.existing:
                await self.open(known)
                await verify(known.volume, known.model)
                await self._reclaim(known)
                for action in (self._write, self._flush, self._snapshot, self._write_unaligned, self._reclaim):
                    await action(known)
                await verify(known.volume, known.model)
                await self._reopen(known)
                await verify(known.volume, known.model)
            await self._leave()

    async def _leave(self) -> None:
        for known in self.existing:
            if known.attached:
                await self.close(known)

    async def step(self) -> None:
        """Do one thing to one volume, or make one."""
        if not self.existing:
            await self._create()
        known = self.choose.choice(self.existing)
        if known.attached is None:
            await self.open(known)
        weights = [weight for weight, _ in self._weights]
        ((_, action),) = self.choose.choices(self._weights, weights)
        self.steps.append(f"{known.model.volume_id} {action.__name__.strip('_')}")
        await action(known)

    async def check(self) -> None:
        """Verify every open volume."""
        for known in self.existing:
            if known.attached:
                await verify(known.volume, known.model)

    @property
    def existing(self) -> list[Known]:
        """The volumes that were made and not deleted."""
        return [known for known in self.volumes.values() if known.made is not None and known.deleting is None]

    # -- barriers and attachments -------------------------------------------------------------------

    @asynccontextmanager
    async def _barrier(self, known: Known, *then: State) -> AsyncIterator[list[Barrier]]:
        """What is inside makes the present state durable, and then those of `then`."""
        begun = known.timeline.begin(self._clock(), known.model.state(), *then)
        yield begun
        position = self._clock()
        for barrier in begun:
            barrier.ended = position

    async def _hold(self, volume_id: str, task_status: "trio.TaskStatus[Attached]" = trio.TASK_STATUS_IGNORED) -> None:
        async with (
            open_volume(self.backend, volume_id, options=self.options) as volume,
            trio.open_nursery() as flushes,
        ):
            attached = Attached(volume, flushes)
            task_status.started(attached)
            await attached.leave.wait()
            if volume.abandoned:
                flushes.cancel_scope.cancel()
        attached.left.set()

    async def open(self, known: Known) -> None:
        """Attach a volume; the model becomes what is found, if that is a state it may be in."""
        assert self._nursery is not None
        position = self._clock()
        known.attached = await self._nursery.start(self._hold, known.model.volume_id)
        state = known.timeline.find(await capture(known.volume), self._clock())
        known.model.adopt(state)
        (barrier,) = known.timeline.begin(position, state)
        barrier.ended = self._clock()

    async def close(self, known: Known, *, abandon: bool = False) -> None:
        """Close a volume, or walk away from it."""
        assert known.attached is not None
        attached, known.attached = known.attached, None
        if abandon:
            attached.volume.abandon()
            attached.leave.set()
            await attached.left.wait()
            return
        async with self._barrier(known):
            attached.leave.set()
            await attached.left.wait()

    # -- steps --------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        self._made += 1
        return f"v{self._made}"

    async def _create(self) -> None:
        known = Known(VolumeModel(self._new_id()), self._clock())
        self.volumes[known.model.volume_id] = known
        async with self._barrier(known):
            await create_volume(self.backend, known.model.volume_id)
        known.made = self._clock()

    def _blocks(self) -> tuple[int, int]:
        """A run of blocks within a zone."""
        start, count = self.choose.choice((ZONES[0], *ZONES))
        size = min(count, self.choose.choice((1, 1, 1, 2, 3, 8, 48)))
        return start + self.choose.randrange(count - size + 1), size

    def _range(self) -> tuple[int, int]:
        """A range of bytes within a zone: offset, length."""
        start, size = self._blocks()
        low = self.choose.randrange(BLOCK)
        high = self.choose.randint(1 if size > 1 else low + 1, BLOCK)
        return start * BLOCK + low, (size - 1) * BLOCK + high - low

    async def _write(self, known: Known) -> None:
        start, count = self._blocks()
        data = b"".join(self.choose.randbytes(8) * (BLOCK // 8) for _ in range(count))
        if self.choose.random() < 0.02:
            data = bytes(len(data))
        known.model.write(data, start * BLOCK)
        if self.choose.random() < 0.3 and known.volume.write_nowait(data, start * BLOCK):
            await known.volume.throttle()
        else:
            assert await known.volume.write(data, start * BLOCK) == len(data)

    async def _write_unaligned(self, known: Known) -> None:
        offset, length = self._range()
        data = (self.choose.randbytes(8) * (length // 8 + 1))[:length]
        known.model.write(data, offset)
        assert await known.volume.write(data, offset) == length

    async def _discard(self, known: Known) -> None:
        start, count = self._blocks()
        offset, length = (start * BLOCK, count * BLOCK) if self.choose.random() < 0.5 else self._range()
        known.model.discard(length, offset)
        await known.volume.discard(length, offset)

    async def _discard_wide(self, known: Known) -> None:
        """Terabytes at once; what is left of it is somewhere between two zones' insides."""
        low, high = sorted(self._blocks()[0] for _ in range(2))
        if self.choose.random() < 0.1:
            low, high = 0, LAST_BLOCK
        known.model.discard((high - low) * BLOCK, low * BLOCK)
        await known.volume.discard((high - low) * BLOCK, low * BLOCK)

    async def _read(self, known: Known) -> None:
        offset, length = self._range()
        found = bytes(await known.volume.read(length, offset))
        assert found == known.model.read(length, offset), f"wrong bytes at {offset:#x}, {length:#x} of them"

    async def _flush(self, known: Known) -> None:
        async with self._barrier(known):
            await known.volume.flush()

    async def _flush_aside(self, known: Known) -> None:
        """Start a flush, and go on while it is under way."""

        async def flush(*, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
            async with self._barrier(known):
                task_status.started()
                await volume.flush()

        assert known.attached is not None
        volume = known.volume
        await known.attached.flushes.start(flush)

    async def _flush_cancelled(self, known: Known) -> None:
        """Start a flush and take it back after a moment: it may have worked or not."""
        turns = self.choose.randrange(12)
        known.timeline.begin(self._clock(), known.model.state())
        async with trio.open_nursery() as nursery:

            async def flush(*, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
                task_status.started()
                await known.volume.flush()

            await nursery.start(flush)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async def _checkpoint(self, known: Known) -> None:
        async with self._barrier(known):
            await known.volume.checkpoint()

    async def _reclaim(self, known: Known) -> None:
        async with self._barrier(known):
            await verify_space(self.backend, known.volume)

    async def _snapshot(self, known: Known) -> None:
        if len(known.model.snapshots) >= _MOST_SNAPSHOTS:
            return
        name = f"s{self._named}"
        self._named += 1
        snapshots = {**known.model.snapshots, name: dict(known.model.live)}
        async with self._barrier(known, State(dict(known.model.live), snapshots)):
            assert (await known.volume.snapshot(name)).name == name
        known.model.snapshots = snapshots

    async def _restore(self, known: Known) -> None:
        if not known.model.snapshots or len(known.model.snapshots) >= _MOST_SNAPSHOTS:
            return
        live = dict(known.model.live)
        target = known.model.snapshots[name := self.choose.choice(sorted(known.model.snapshots))]
        async with self._barrier(known, State(target, {**known.model.snapshots, AUTO: live})) as (_, barrier):
            safety = (await known.volume.restore(name)).name
        barrier.state = State(target, {**known.model.snapshots, safety: live})
        known.model.adopt(barrier.state)

    async def _delete_snapshot(self, known: Known) -> None:
        if not known.model.snapshots:
            return
        volume, model = known.volume, known.model
        name = self.choose.choice(sorted(model.snapshots))
        if any(other.origin == (model.volume_id, name) for other in self.existing):
            async with self._barrier(known):
                try:
                    await volume.delete_snapshot(name)
                except VolumeHasSnapshots:
                    return
                raise AssertionError(f"snapshot {name} has a clone and was deleted")
        exclusive, before = (await volume.snapshot_usage(name)).exclusive, (await volume.usage()).data
        rest = {other: tree for other, tree in model.snapshots.items() if other != name}
        async with self._barrier(known, State(dict(model.live), rest)):
            await volume.delete_snapshot(name)
        model.snapshots = rest
        freed = before - (await volume.usage()).data
        assert freed == exclusive, f"deleting {name} gave back {freed} bytes instead of {exclusive}"

    async def _clone(self, known: Known) -> None:
        if not known.model.snapshots or len(self.existing) >= _MOST_VOLUMES:
            return
        name = self.choose.choice(sorted(known.model.snapshots))
        clone = Known(
            VolumeModel(self._new_id(), dict(known.model.snapshots[name])), self._clock(),
            origin=(known.model.volume_id, name),
        )  # fmt: skip
        self.volumes[clone.model.volume_id] = clone
        if self.choose.random() < 0.3:
            await self.close(known)
        async with self._barrier(clone):
            await clone_volume(self.backend, known.model.volume_id, name, clone.model.volume_id)
        clone.made = self._clock()

    async def _delete_volume(self, known: Known) -> None:
        volume_id = known.model.volume_id
        if any(other.origin and other.origin[0] == volume_id for other in self.existing):
            try:
                await delete_volume(self.backend, volume_id)
            except VolumeHasSnapshots:
                return
            raise AssertionError(f"{volume_id} has a clone and was deleted")
        if known.origin is None:
            return
        await self.close(known)
        known.deleting = self._clock()
        await delete_volume(self.backend, volume_id)
        known.deleted = self._clock()

    async def _reopen(self, known: Known) -> None:
        await self.close(known)
        await self.open(known)

    async def _reopen_abandoned(self, known: Known) -> None:
        """As if the process had died, but not the machine: open it anew."""
        await self.close(known, abandon=True)
        await self.open(known)

    async def _idle(self, known: Known) -> None:
        """Long enough for a mark to be written."""
        await trio.sleep(1)

    async def _another_epoch(self, known: Known) -> None:
        """Let the log go on in another epoch, as it does after 256 GiB."""
        log, attachment = known.volume._log, known.volume._attachment
        assert log is not None
        assert attachment is not None
        if log.jump is None:
            log.jump = await attachment.claim_next_epoch()

    async def _look_on(self, known: Known) -> None:
        """Open it a second time, to read only: it shows a state that recovery could give."""
        position = self._clock()
        async with open_volume(self.backend, known.model.volume_id, read_only=True, options=self.options) as volume:
            image = await capture(volume)
        known.timeline.find(image, position, self._clock())
