"""Two writers, clones made of a busy parent, and deletions between them: one side wins, and neither is damaged."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from fusevol.backends.base import Backend
from fusevol.backends.file import FileBackend
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, Rule, fail
from fusevol.errors import (
    BackendError,
    CorruptData,
    Fenced,
    FusevolError,
    SnapshotNotFound,
    VolumeHasSnapshots,
    VolumeNotFound,
)
from fusevol.log import LogVolume, clone_volume, create_volume, delete_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.life import BLOCKS, LIFE, Life
from tests.unit.volumes import QUIET, Hooked, State, Step, block_bytes, content_of, read_all

FULL = bool(os.environ.get("FUSEVOL_FULL"))

#: What the first writer does, and is interrupted in.
OPERATIONS = [operation for operation in LIFE if operation[0] not in ("clone", "use-clone", "delete-clone", "reopen")]


@pytest.fixture(params=["memory", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return MemoryBackend() if request.param == "memory" else FileBackend(tmp_path)


async def fenced_everywhere(volume: LogVolume) -> None:
    """Whatever would make something durable or change what is kept raises Fenced."""
    names = [snapshot.name for snapshot in volume.snapshots()]
    for act in (
        volume.flush,
        volume.checkpoint,
        lambda: volume.snapshot("late"),
        lambda: volume.restore(names[0]),
        lambda: volume.delete_snapshot(names[0]),
        volume.reclaim,
    ):
        with pytest.raises(Fenced, match="taken over"):
            await act()


@pytest.mark.parametrize("dirty", [False, True])
async def test_the_second_writer_has_the_volume_and_the_first_can_do_nothing_any_more(
    backend: Backend, dirty: bool
) -> None:
    await create_volume(backend, "v")
    wanted = {0: block_bytes("kept"), 1: block_bytes("flushed"), 2: block_bytes("second")}
    with trio.fail_after(30):
        with pytest.raises(Fenced):  # noqa: PT012  # raised on leaving
            async with open_volume(backend, "v", options=QUIET) as first:
                await first.write(block_bytes("kept"), 0)
                await first.snapshot("s")
                await first.write(block_bytes("flushed"), BLOCK)
                await first.flush()
                async with open_volume(backend, "v", options=QUIET) as second:
                    await second.write(block_bytes("second"), 2 * BLOCK)
                    if dirty:
                        await first.write(block_bytes("lost"), 0)
                        await first.write(block_bytes("lost"), 2 * BLOCK)
                        assert await first.read(BLOCK, 0) == block_bytes("lost")
                    else:
                        await second.flush()
                        await first.write(block_bytes("lost"), 5 * BLOCK)
                    await fenced_everywhere(first)
                    with pytest.raises(Fenced):
                        await first.write(block_bytes("refused"), 0)
                    await second.flush()
                    assert await content_of(second, range(8)) == wanted
                    await second.snapshot("t")
        async with open_volume(backend, "v", options=QUIET) as volume:
            assert await read_all(volume, range(8)) == (
                wanted,
                {"s": {0: block_bytes("kept")}, "t": wanted},
            )
            assert not (await volume.scrub()).damage
            await volume.reclaim()
            usage = await volume.usage()
        assert usage.total <= await backend.used_size("v") + 16 * BLOCK
    await backend.aclose()


async def test_a_writer_that_had_flushed_everything_learns_on_leaving_that_it_was_taken_over() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    with pytest.raises(Fenced):  # noqa: PT012  # raised on leaving
        async with open_volume(backend, "v", options=QUIET) as first:
            await first.write(block_bytes(1), 0)
            await first.flush()
            async with open_volume(backend, "v", options=QUIET) as second:
                assert await second.read(BLOCK, 0) == block_bytes(1)
    async with open_volume(backend, "v", options=QUIET) as volume:
        assert await volume.read(BLOCK, 0) == block_bytes(1)


class Takeover:
    """Takes the volume over at one step of the first writer, and keeps it until that one is done."""

    def __init__(self, inner: MemoryBackend, life: Life, number: int, after: bool, stay: bool) -> None:
        self.inner = inner
        self.life = life
        self.moment = (number, after)
        self.stay = stay
        self.done = False
        self.found: State | None = None
        self.release = trio.Event()
        self.nursery: trio.Nursery | None = None

    async def hook(self, step: Step) -> None:
        if self.done or (step.number, step.after) != self.moment:
            return
        self.done = True
        assert self.nursery is not None
        # Shielded: the step may belong to a task that is cancelled when its volume is left.
        with trio.CancelScope(shield=True):
            await self.nursery.start(self.second)

    async def second(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        barriers = list(self.life.model.barriers)
        async with open_volume(self.inner, "v", options=QUIET) as volume:
            self.found = await read_all(volume, BLOCKS)
            assert self.found in barriers, "a flush that was acknowledged is missing, or something half done shows"
            await volume.write(block_bytes("second"), BLOCKS.start * BLOCK)
            await volume.flush()
            self.found[0][BLOCKS.start] = block_bytes("second")
            if self.stay:
                task_status.started()
                await self.release.wait()
            assert await read_all(volume, BLOCKS) == self.found
        task_status.started() if not self.stay else None


@pytest.mark.parametrize("stay", [False, True])
async def test_a_takeover_at_any_call_of_the_first_writer_finds_what_was_acknowledged_and_keeps_it(stay: bool) -> None:
    number = 0
    moments = 0
    complete = False
    while not complete:
        number += 1
        for after in (False, True):
            if (number, after) < (2, True):
                continue  # the first writer has not claimed the volume yet: it would be the second
            if number % 3 != after + stay and not FULL:
                continue
            inner = MemoryBackend()
            await create_volume(inner, "v")
            life = Life(Hooked(inner), Fenced, OPERATIONS)
            takeover = Takeover(inner, life, number, after, stay)
            assert isinstance(life.backend, Hooked)
            try:
                with trio.fail_after(20):
                    await lived(life, takeover)
                    if not takeover.done:
                        complete = True
                        break
                    moments += 1
                    async with open_volume(inner, "v", options=QUIET) as volume:
                        assert await read_all(volume, BLOCKS) == takeover.found
                        assert not (await volume.scrub()).damage
                        await volume.reclaim()
                        # Writes of the fenced writer that came in late may be left over; nothing may be missing.
                        assert (await volume.usage()).total <= inner.spaces["v"].used_size()
            except Exception as error:
                error.add_note(f"taken over {'after' if after else 'before'} call {takeover.moment[0]}")
                raise
    assert moments > 50


async def lived(life: Life, takeover: Takeover) -> None:
    assert isinstance(life.backend, Hooked)
    async with trio.open_nursery() as nursery:
        takeover.nursery = nursery
        life.backend.hook = takeover.hook
        try:
            async with open_volume(life.backend, "v", options=QUIET) as first:
                life._volume = first
                for operation in OPERATIONS:
                    await life._apply(*operation)
                life.model.attempt()
        except Fenced:
            assert takeover.done
        life.backend.hook = None
        takeover.release.set()


# -- clones ---------------------------------------------------------------------------------------


async def test_a_clone_is_made_while_the_parent_writes_and_pins_under_its_hands() -> None:
    """Between any two calls of making the clone, the parent writes, checkpoints and gives space back."""
    inner = MemoryBackend()
    await create_volume(inner, "v")
    async with open_volume(inner, "v", options=QUIET) as parent:
        await parent.write(block_bytes("cloned"), 0)
        await parent.snapshot("s")
        turns = 0

        async def busy(step: Step) -> None:
            nonlocal turns
            turns += 1
            await parent.write(block_bytes(turns), 0)
            await parent.checkpoint() if turns % 3 else await parent.snapshot(f"t{turns}")
            await parent.reclaim()

        for n in range(3):
            # The parent is busier than any: let a clone through now and then.
            async def hook(step: Step, n: int = n) -> None:
                if turns < (n + 1) * 9:
                    await busy(step)

            with trio.fail_after(10):
                await clone_volume(Hooked(inner, hook), "v", "s", f"c{n}")
            assert turns >= (n + 1) * 9
        with pytest.raises(VolumeHasSnapshots):
            await parent.delete_snapshot("s")
        await parent.flush()
        assert await parent.read(BLOCK, 0) == block_bytes(turns)
    for n in range(3):
        async with open_volume(inner, f"c{n}", options=QUIET) as clone:
            assert await clone.read(BLOCK, 0) == block_bytes("cloned")
        await delete_volume(inner, f"c{n}")
    async with open_volume(inner, "v", options=QUIET) as parent:
        await parent.delete_snapshot("s")


@pytest.mark.parametrize("who_waits", ["clone", "deletion"])
async def test_of_a_clone_and_the_deletion_of_its_snapshot_one_wins_and_neither_is_broken(who_waits: str) -> None:
    """Each step of one meets the whole of the other."""
    won: set[str] = set()
    for number in range(1, 40):
        for after in (False, True):
            inner = MemoryBackend()
            await create_volume(inner, "v")
            hooked = Hooked(inner)
            cloned = deleted = met = False
            async with open_volume(hooked if who_waits == "deletion" else inner, "v", options=QUIET) as parent:
                await parent.write(block_bytes("cloned"), 0)
                await parent.snapshot("s")
                await parent.write(block_bytes("later"), 0)
                await parent.flush()
                hooked.calls = 0

                async def hook(step: Step) -> None:
                    nonlocal cloned, deleted, met
                    if (step.number, step.after) != (number, after) or met:  # noqa: B023
                        return
                    met = True
                    if who_waits == "clone":
                        with suppress(VolumeHasSnapshots):
                            await parent.delete_snapshot("s")
                            deleted = True
                    else:
                        with suppress(SnapshotNotFound):
                            await clone_volume(inner, "v", "s", "c")  # noqa: B023
                            cloned = True

                hooked.hook = hook
                with trio.fail_after(10):
                    if who_waits == "clone":
                        with suppress(SnapshotNotFound):
                            await clone_volume(hooked, "v", "s", "c")
                            cloned = True
                    else:
                        with suppress(VolumeHasSnapshots):
                            await parent.delete_snapshot("s")
                            deleted = True
                hooked.hook = None
            if met:
                assert cloned != deleted or (cloned and not deleted), f"step {number}, after={after}"
                assert cloned or deleted
            won.add("clone" if cloned else "deletion")
            async with open_volume(inner, "v", options=QUIET) as parent:
                assert [snapshot.name for snapshot in parent.snapshots()] == ([] if deleted else ["s"])
                assert await parent.read(BLOCK, 0) == block_bytes("later")
            if cloned:
                async with open_volume(inner, "c", options=QUIET) as clone:
                    assert await clone.read(BLOCK, 0) == block_bytes("cloned")
            else:
                assert "c" not in inner.spaces
        if not met:
            break
    assert not met, "all steps were met"
    assert won == {"clone", "deletion"}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["clone", "delete"])
async def test_a_clone_or_its_deletion_cut_short_anywhere_leaves_what_can_be_deleted_and_no_pin(
    what: str, after: bool
) -> None:
    steps = 0
    for call in ("create", "delete", "read", "get_manifest", "put_manifest"):
        for n in range(1, 30):
            inner = MemoryBackend()
            await create_volume(inner, "v")
            async with open_volume(inner, "v", options=QUIET) as parent:
                await parent.write(block_bytes("cloned"), 0)
                await parent.snapshot("s")
            if what == "delete":
                await clone_volume(inner, "v", "s", "c")
            rule = fail(call, nth=n, after=after)

            async def hook(step: Step, rule: Rule = rule) -> None:
                # As if the process had died there: what would clean up fails, too.
                if rule.fired:
                    raise BackendError("the process is dead")

            with suppress(BackendError):
                dying = Hooked(FaultyBackend(inner, [rule]), hook)
                if what == "clone":
                    await clone_volume(dying, "v", "s", "c")
                else:
                    await delete_volume(dying, "c")
            if not rule.fired:
                break
            steps += 1
            if "c" in inner.spaces:
                with suppress(CorruptData):
                    async with open_volume(inner, "c", options=QUIET) as clone:
                        assert await clone.read(BLOCK, 0) == block_bytes("cloned")
                await delete_volume(inner, "c")
            with trio.fail_after(5):
                async with open_volume(inner, "v", options=QUIET) as parent:
                    assert await parent.read(BLOCK, 0) == block_bytes("cloned")
                    await parent.delete_snapshot("s")
                await delete_volume(inner, "v")
            assert not inner.spaces
    assert steps >= (6 if what == "clone" else 5)


async def test_a_stale_pin_of_a_clone_that_was_made_anew_protects_and_blocks_nothing() -> None:
    inner = MemoryBackend()
    await create_volume(inner, "v")
    async with open_volume(inner, "v", options=QUIET) as parent:
        await parent.write(block_bytes("cloned"), 0)
        await parent.snapshot("s")
        await clone_volume(inner, "v", "s", "c")
        await inner.delete("c")  # interrupted before the pin is dropped
        await create_volume(inner, "c")  # another volume of that id, and no clone
        await parent.delete_snapshot("s")
        await parent.snapshot("t")
        await clone_volume(inner, "v", "t", "d")
        await inner.delete("d")
        await clone_volume(inner, "v", "t", "d")
        with pytest.raises(VolumeHasSnapshots):
            await parent.delete_snapshot("t")
        async with open_volume(inner, "d", options=QUIET) as clone:
            assert await clone.read(BLOCK, 0) == block_bytes("cloned")
        await delete_volume(inner, "d")
        await parent.delete_snapshot("t")


@pytest.mark.parametrize("who_waits", ["clone", "deletion"])
async def test_of_a_clone_and_the_deletion_of_its_parent_one_wins(who_waits: str) -> None:
    for number in range(1, 40):
        inner = MemoryBackend()
        await create_volume(inner, "v")
        async with open_volume(inner, "v", options=QUIET) as parent:
            await parent.write(block_bytes("cloned"), 0)
            await parent.snapshot("s")
        cloned = deleted = met = False

        async def clone(on: Backend) -> None:
            nonlocal cloned
            with suppress(VolumeNotFound, CorruptData):
                await clone_volume(on, "v", "s", "c")
                cloned = True

        async def delete(on: Backend) -> None:
            nonlocal deleted
            with suppress(VolumeHasSnapshots):
                await delete_volume(on, "v")
                deleted = True

        one: Callable[[Backend], Awaitable[None]] = clone if who_waits == "clone" else delete
        other: Callable[[Backend], Awaitable[None]] = delete if who_waits == "clone" else clone

        async def hook(step: Step) -> None:
            nonlocal met
            if step.number == number and not step.after and not met:  # noqa: B023
                met = True
                await other(inner)  # noqa: B023

        with trio.fail_after(10):
            await one(Hooked(inner, hook))
        if not met:
            break
        assert cloned != deleted, f"step {number}: cloned {cloned}, deleted {deleted}"
        if cloned:
            async with open_volume(inner, "c", options=QUIET) as volume:
                assert await volume.read(BLOCK, 0) == block_bytes("cloned")
        else:
            assert not inner.spaces
    assert not met


async def test_a_writer_whose_volume_is_deleted_acknowledges_nothing() -> None:
    inner = MemoryBackend()
    await create_volume(inner, "v")
    with pytest.raises(FusevolError):  # noqa: PT012
        async with open_volume(inner, "v", options=QUIET) as volume:
            await delete_volume(inner, "v")
            await volume.write(block_bytes(1), 0)
            for act in (volume.flush, volume.checkpoint):
                with pytest.raises(VolumeNotFound):
                    await act()
    assert not inner.spaces


async def test_a_writer_that_takes_another_epoch_is_not_fenced_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushes read the manifest while another one is putting it."""
    monkeypatch.setattr("fusevol.log.committed.EPOCH_BLOCKS", 16)

    async def hook(step: Step) -> None:
        for _ in range(3 if step.call == "put_manifest" else 1):
            await trio.lowlevel.checkpoint()

    inner = MemoryBackend()
    await create_volume(inner, "v")
    with trio.fail_after(20):
        async with open_volume(Hooked(inner, hook), "v", options=QUIET) as volume:

            async def flushes(first: int) -> None:
                for block in range(first, first + 30):
                    await volume.write(block_bytes(block), block * BLOCK)
                    await volume.flush()

            async with trio.open_nursery() as nursery:
                for first in (0, 30, 60, 90):
                    nursery.start_soon(flushes, first)
                nursery.start_soon(volume.snapshot, "s")
            volume.abandon()
        async with open_volume(inner, "v", options=QUIET) as volume:
            assert await content_of(volume, range(130)) == {block: block_bytes(block) for block in range(120)}
            await volume.reclaim()
            assert (await volume.usage()).total == inner.spaces["v"].used_size()
