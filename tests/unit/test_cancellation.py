"""Tasks cancelled at any await: the volume stays usable and right, and no lock stays taken."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel

from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, fail
from fusevol.errors import NoSpace
from fusevol.log import LogOptions, LogVolume, create_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.life import Life, verify
from tests.unit.volumes import QUIET, Hooked, Step, block_bytes, content_of, read_all

FULL = bool(os.environ.get("FUSEVOL_FULL"))


async def yield_once(step: Step) -> None:
    await trio.lowlevel.checkpoint()


async def test_an_operation_cancelled_at_any_call_is_done_or_not_done_and_can_be_done_again() -> None:
    counting = Hooked(MemoryBackend())
    await Life(counting).live(retry=False)
    cancelled = 0
    for number in range(1, counting.calls + 1):
        for after in (False, True):
            if number % 4 != 2 * after and not FULL:
                continue
            inner = MemoryBackend()
            backend = Hooked(inner)
            life = Life(backend)

            async def hook(step: Step, life: Life = life, moment: tuple[int, bool] = (number, after)) -> None:
                if (step.number, step.after) == moment and life.scope is not None:
                    life.scope.cancel()
                    await trio.lowlevel.checkpoint()

            backend.hook = hook
            try:
                with trio.fail_after(20):
                    await life.live(retry=True)
                    assert not life.told
                    backend.hook = None
                    cancelled += life.cancelled
                    await verify(inner, life)
            except Exception as error:
                error.add_note(f"cancelled {'after' if after else 'before'} call {number}")
                raise
    assert cancelled > 20


OPERATIONS: dict[str, Callable[[LogVolume], Awaitable[object]]] = {
    "write": lambda volume: volume.write(block_bytes("w") * 4096, 3 * BLOCK),
    "partial write": lambda volume: volume.write(b"abc", 5 * BLOCK + 7),
    "discard": lambda volume: volume.discard(4000 * BLOCK, 100),
    "read": lambda volume: volume.read(4100 * BLOCK, 0),
    "flush": lambda volume: volume.flush(),
    "snapshot": lambda volume: volume.snapshot("t"),
    "restore": lambda volume: volume.restore("s"),
    "delete_snapshot": lambda volume: volume.delete_snapshot("s"),
    "checkpoint": lambda volume: volume.checkpoint(),
    "reclaim": lambda volume: volume.reclaim(),
    "usage": lambda volume: volume.usage(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operation_cancelled_after_any_number_of_scheduling_steps_leaves_no_lock_and_no_harm(
    operation: str,
) -> None:
    """The deadline falls on every step of the scheduler, not only on calls of the backend."""
    blocks = range(40)
    for steps in range(0, 200, 1 if FULL else 3):
        backend = Hooked(MemoryBackend(), yield_once)
        await create_volume(backend, "v")
        with trio.fail_after(20):
            async with open_volume(backend, "v", options=LogOptions(cached_nodes=1, idle_seconds=1e9)) as volume:
                for block in (0, 1025, 2050, 3075):
                    await volume.write(block_bytes(block), block * BLOCK)
                await volume.snapshot("s")
                await volume.write(block_bytes("mine"), 3 * BLOCK)
                before = await read_all(volume, blocks)
                scope = trio.CancelScope()
                finished = False

                async def run(volume: LogVolume = volume, scope: trio.CancelScope = scope) -> None:
                    nonlocal finished
                    with scope:
                        await OPERATIONS[operation](volume)
                        finished = True

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
                after = await read_all(volume, blocks)
                if operation in ("read", "flush", "checkpoint", "reclaim", "usage"):
                    assert after == before
                # Every lock can be had, and everything works.
                await volume.write(block_bytes("after"), 9 * BLOCK)
                await volume.snapshot("later")
                if "s" in after[1]:
                    await volume.delete_snapshot("s")
                await volume.reclaim()
                assert (await volume.usage()).total == await backend.used_size("v")
                left = await read_all(volume, blocks)
                assert left[0] == {**after[0], 9: block_bytes("after")}
                await volume.flush()
                volume.abandon()
            async with open_volume(backend, "v", options=QUIET) as volume:
                assert await read_all(volume, blocks) == left
        if finished:
            break
    assert finished


async def test_who_waits_for_a_slow_store_can_be_cancelled_and_the_push_goes_on() -> None:
    inner = MemoryBackend()
    gate = trio.Event()

    async def hook(step: Step) -> None:
        if step.call in ("write", "flush") and not step.after:
            await gate.wait()

    gate.set()
    backend = Hooked(inner, hook)
    await create_volume(backend, "v")
    with trio.fail_after(10):
        async with open_volume(backend, "v", options=QUIET) as volume:
            gate = trio.Event()
            await volume.write(block_bytes(1), 0)
            for _ in range(3):
                with trio.move_on_after(0) as scope:
                    await volume.flush()
                assert scope.cancelled_caught
            big = b"x" * (6 << 20)
            with trio.move_on_after(0.01) as scope:
                for n in range(20):
                    await volume.write(big, (n << 23) + BLOCK)
            assert scope.cancelled_caught, "the writer is held back"
            gate.set()
            await volume.flush()
            volume.abandon()
        async with open_volume(inner, "v", options=QUIET) as volume:
            assert await volume.read(BLOCK, 0) == block_bytes(1)
            assert await volume.read(6 << 20, BLOCK) == big


@pytest.mark.parametrize("waits", [False, True])
async def test_leaving_a_volume_because_of_a_cancellation_flushes_it(waits: bool) -> None:
    inner = MemoryBackend()
    await create_volume(inner, "v")
    backend = Hooked(inner, yield_once) if waits else inner
    with trio.fail_after(5):
        with trio.CancelScope() as scope:
            async with open_volume(backend, "v", options=LogOptions(checkpoint_bytes=1, idle_seconds=0)) as volume:
                await volume.write(block_bytes(1), 0)
                await volume.flush()
                await volume.write(block_bytes(2), BLOCK)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        async with open_volume(inner, "v", options=QUIET) as volume:
            assert await content_of(volume, range(4)) == {0: block_bytes(1), 1: block_bytes(2)}


async def test_leaving_because_of_a_cancellation_says_so_when_the_last_writes_are_lost() -> None:
    inner = MemoryBackend()
    backend = FaultyBackend(inner)
    await create_volume(inner, "v")
    with trio.fail_after(5):
        with pytest.raises(NoSpace), trio.CancelScope() as scope:  # noqa: PT012
            async with open_volume(backend, "v", options=QUIET) as volume:
                backend.add(fail("write", error=NoSpace))
                await volume.write(block_bytes(1), 0)
                scope.cancel()
                await trio.sleep_forever()
        async with open_volume(inner, "v", options=QUIET) as volume:
            assert await content_of(volume, range(2)) == {}


async def test_opening_can_be_cancelled_at_any_call_and_the_volume_opens_the_next_time() -> None:
    number = 0
    reached = True
    while reached:
        number += 1
        inner = MemoryBackend()
        await create_volume(inner, "v")
        for turn in range(2):
            async with open_volume(inner, "v", options=QUIET) as volume:
                await volume.write(block_bytes(turn), turn * BLOCK)
                await volume.flush()
                volume.abandon()
        reached = False
        scope = trio.CancelScope()

        async def hook(step: Step, number: int = number, scope: trio.CancelScope = scope) -> None:
            nonlocal reached
            if step.number == number and step.after:
                reached = True
                scope.cancel()

        backend = Hooked(inner, hook)
        with trio.fail_after(5):
            with scope:
                async with open_volume(backend, "v", options=QUIET):
                    reached = False
            async with open_volume(inner, "v", options=QUIET) as volume:
                assert await content_of(volume, range(3)) == {0: block_bytes(0), 1: block_bytes(1)}
                await volume.reclaim()
                assert (await volume.usage()).total == inner.spaces["v"].used_size()
    assert number > 8
