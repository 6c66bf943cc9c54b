"""A backend that fails: who is told, what is kept, and that nothing is claimed, lost, leaked or left hanging."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio

from fusevol.backends.base import Backend
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.counting import CountingBackend
from fusevol.backends.wrappers.faults import FaultyBackend, Rule, delay, fail, full, short, torn
from fusevol.errors import BackendError, FusevolError, NoSpace, VolumeBusy
from fusevol.log import LogOptions, LogVolume, create_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.life import Life, exact, verify
from tests.unit.volumes import QUIET, Hooked, Step, block_bytes

#: Everything, not a sample.
FULL = bool(os.environ.get("FUSEVOL_FULL"))


async def calls_of_life() -> dict[str, int]:
    """How often each call is made in a life without faults."""
    inner = MemoryBackend()
    backend = CountingBackend(inner)
    life = Life(backend)
    await life.live(retry=False)
    counts = {call: count.calls for call, count in backend.counts().items()}
    assert not life.told
    await verify(inner, life)
    return counts


async def sweep(
    call: str, rules: Callable[[int], list[Rule]], expected: type[FusevolError], *, told: bool = True
) -> None:
    """Live a life for each n with the n-th call failing, once going on and once stopping there.

    Where there are many calls, every other n goes on and the rest stop; FUSEVOL_FULL=1 does all of it.
    """
    total = (await calls_of_life())[call]
    assert total
    step = 1 if FULL else 1 + total // 60
    for n in range(1, total + 1, step):
        for retry in (False, True) if FULL or total < 12 else ((n // step) % 2 == 0,):
            inner = MemoryBackend()
            backend = FaultyBackend(inner, rules(n))
            life = Life(backend, expected)
            try:
                with trio.fail_after(10):
                    await life.live(retry=retry)
                    assert backend.rules[0].fired
                    assert life.told or not told, "nobody was told"
                    backend.clear()
                    await verify(inner, life)
            except Exception as error:
                error.add_note(f"{call} number {n} of {total}, {'retrying' if retry else 'stopping'}: {life.told}")
                raise


async def test_a_life_without_faults_is_what_the_model_says() -> None:
    counts = await calls_of_life()
    assert min(counts[call] for call in ("write", "flush", "discard", "get_manifest", "put_manifest", "read")) > 3


#: The log tries a write once more before it tells anybody, so two in a row fail, or all from the n-th to the m-th.
@pytest.mark.parametrize(("error", "times"), [(NoSpace, 1), (NoSpace, 2), (BackendError, 3)])
async def test_writes_that_fail_are_told_and_can_be_tried_again_with_nothing_lost(
    error: type[BackendError], times: int
) -> None:
    await sweep("write", lambda n: [fail("write", nth=n + i, error=error) for i in range(times)], error, told=False)


async def test_writes_that_fail_after_their_effect_change_nothing_but_the_answer() -> None:
    await sweep("write", lambda n: [fail("write", nth=n + i, after=True) for i in (0, 1)], BackendError, told=False)


async def test_short_writes_are_told_and_can_be_tried_again() -> None:
    await sweep("write", lambda n: [short(nth=n), short(nth=n + 1)], BackendError, told=False)


async def test_torn_writes_are_told_and_can_be_tried_again() -> None:
    await sweep("write", lambda n: [torn(nth=n), torn(nth=n + 1)], BackendError, told=False)


@pytest.mark.parametrize("after", [False, True])
async def test_a_failed_flush_acknowledges_nothing_and_the_volume_stops_until_it_is_opened_again(after: bool) -> None:
    await sweep("flush", lambda n: [fail("flush", nth=n, after=after)], BackendError)


@pytest.mark.parametrize("error", [NoSpace, BackendError])
async def test_a_manifest_that_is_not_put_leaves_the_last_barrier_and_a_volume_that_works(
    error: type[BackendError],
) -> None:
    await sweep("put_manifest", lambda n: [fail("put_manifest", nth=n, error=error)], BackendError, told=False)


async def test_a_manifest_put_whose_answer_is_lost_counts_as_done() -> None:
    await sweep("put_manifest", lambda n: [fail("put_manifest", nth=n, after=True)], BackendError, told=False)


async def test_a_manifest_that_cannot_be_read_is_told_and_the_volume_goes_on() -> None:
    await sweep("get_manifest", lambda n: [fail("get_manifest", nth=n)], BackendError)


async def test_a_read_that_fails_once_is_told_and_works_the_next_time() -> None:
    await sweep("read", lambda n: [fail("read", nth=n)], BackendError)


async def test_a_discard_that_fails_leaks_nothing() -> None:
    await sweep("discard", lambda n: [fail("discard", nth=n)], BackendError, told=False)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", ["create", "delete"])
async def test_a_volume_whose_creation_or_deletion_fails_can_be_deleted(call: str, after: bool) -> None:
    await sweep(call, lambda n: [fail(call, nth=n, after=after)], BackendError)


# -- single faults, told one by one ---------------------------------------------------------------


async def attached(backend: Backend) -> AbstractAsyncContextManager[LogVolume]:
    await create_volume(backend, "v")
    return open_volume(backend, "v", options=QUIET)


async def test_a_full_store_is_told_to_the_writer_and_all_is_kept_until_there_is_space() -> None:
    inner = MemoryBackend()
    backend = FaultyBackend(inner)
    wanted = {block: block_bytes(block) for block in range(0, 6000, 3)}
    with trio.fail_after(20):
        async with await attached(backend) as volume:
            rule = full(after=3 << 20)
            backend.add(rule)
            refused = 0
            for block, data in wanted.items():
                while True:
                    try:
                        await volume.write(data, block * BLOCK)
                        break
                    except NoSpace:
                        refused += 1
                        with pytest.raises(NoSpace):
                            await volume.flush()
                        with pytest.raises(NoSpace):
                            await volume.snapshot("not yet")
                        assert rule.budget is not None
                        rule.budget += 9 << 20
                        await volume.flush()
            backend.clear()
            await volume.flush()
            assert not volume.snapshots()
            volume.abandon()
        async with open_volume(inner, "v", options=QUIET) as volume:
            for block, data in wanted.items():
                assert await volume.read(BLOCK, block * BLOCK) == data
            await exact(inner, volume)


@pytest.mark.parametrize("error", [NoSpace, BackendError])
async def test_a_store_that_stays_broken_is_told_on_leaving_and_the_last_barrier_is_kept(
    error: type[BackendError],
) -> None:
    inner = MemoryBackend()
    backend = FaultyBackend(inner)
    with trio.fail_after(10):
        with pytest.raises(error):  # noqa: PT012  # raised on leaving
            async with await attached(backend) as volume:
                await volume.write(block_bytes(1), 0)
                await volume.flush()
                backend.add(fail("write", error=error))
                await volume.write(block_bytes(2), 0)
                assert await volume.read(BLOCK, 0) == block_bytes(2)
        async with open_volume(inner, "v", options=QUIET) as volume:
            assert await volume.read(BLOCK, 0) == block_bytes(1)
            await exact(inner, volume)


@pytest.mark.parametrize("call", ["write", "flush", "get_manifest", "put_manifest", "discard"])
async def test_a_store_that_fails_for_ever_ends_no_attach_and_no_close_in_a_hang_or_a_group(call: str) -> None:
    inner = MemoryBackend()
    await create_volume(inner, "v")
    total = 40
    with trio.fail_after(20):
        for n in range(1, total):
            backend = FaultyBackend(inner, [fail(call, nth=n + i) for i in range(total)])
            try:
                async with open_volume(backend, "v", options=LogOptions(idle_seconds=0, checkpoint_bytes=1)) as volume:
                    await volume.write(block_bytes(n), 0)
                    await volume.flush()
                    await volume.snapshot(f"s{n}")
            except BackendError:
                pass
        async with open_volume(inner, "v", options=QUIET) as volume:
            await exact(inner, volume)


async def test_a_backend_that_raises_what_it_must_not_is_an_error_of_the_store_and_no_group() -> None:
    backend = FaultyBackend(MemoryBackend())
    with pytest.raises(BackendError, match="no such device"):  # noqa: PT012
        async with await attached(backend) as volume:
            backend.add(fail("write", error=lambda: OSError(19, "no such device")))
            await volume.write(block_bytes(1), 0)
            await volume.flush()


async def test_a_restore_whose_outcome_stays_unknown_is_followed_by_no_false_acknowledgement() -> None:
    """The put takes effect, its answer is lost, and the manifest cannot be read to learn it."""
    for lost in (1, 2, 3, 4):
        inner = MemoryBackend()
        backend = FaultyBackend(inner)
        async with await attached(backend) as volume:
            await volume.write(block_bytes(1), 0)
            await volume.snapshot("s")
            await volume.write(block_bytes(2), 0)
            await volume.flush()
            backend.add(fail("put_manifest", after=True, times=1), fail("get_manifest", nth=lost))
            try:
                await volume.restore("s")
                expected = block_bytes(1)
            except BackendError:
                expected = block_bytes(2)
            backend.clear()
            assert await volume.read(BLOCK, 0) == expected
            acknowledged, told = True, ""
            try:
                await volume.write(block_bytes(3), BLOCK)
                await volume.flush()
            except BackendError as error:
                acknowledged, told = False, str(error)
            assert acknowledged or "took effect" in told
            volume.abandon()
        async with open_volume(inner, "v", options=QUIET) as volume:
            if acknowledged:
                assert await volume.read(2 * BLOCK, 0) == expected + block_bytes(3)
            else:
                assert await volume.read(2 * BLOCK, 0) == block_bytes(1) + bytes(BLOCK)
            await exact(inner, volume)


class Late(FaultyBackend):
    """Fails a put of the manifest, and makes it all the same when `land` is called."""

    land: Callable[[], Awaitable[object]] | None = None
    armed = False

    async def put_manifest(self, volume_id: str, data: Any, if_version: str) -> str:
        if self.armed:
            self.armed = False
            kept = bytes(data)
            self.land = lambda: self.inner.put_manifest(volume_id, kept, if_version)
            raise BackendError("no answer")
        return await super().put_manifest(volume_id, data, if_version)


@pytest.mark.parametrize("flush_first", [False, True])
async def test_a_put_that_takes_effect_long_after_it_failed_cannot_undo_what_was_acknowledged(
    flush_first: bool,
) -> None:
    inner = MemoryBackend()
    backend = Late(inner)
    async with await attached(backend) as volume:
        await volume.write(block_bytes(1), 0)
        await volume.snapshot("s")
        await volume.write(block_bytes(2), 0)
        await volume.flush()
        backend.armed = True
        with pytest.raises(BackendError, match="no answer"):
            await volume.restore("s")
        await volume.write(block_bytes(3), BLOCK)
        assert backend.land is not None
        if flush_first:
            await volume.flush()
            with pytest.raises(FusevolError):
                await backend.land()
            await volume.flush()
        else:
            await backend.land()
            with pytest.raises(BackendError, match="took effect"):
                await volume.flush()
        volume.abandon()
    async with open_volume(inner, "v", options=QUIET) as volume:
        if flush_first:
            assert await volume.read(2 * BLOCK, 0) == block_bytes(2) + block_bytes(3)
        else:
            assert await volume.read(2 * BLOCK, 0) == block_bytes(1) + bytes(BLOCK)
        await exact(inner, volume)


async def test_a_deleted_snapshot_is_deleted_though_its_space_cannot_be_given_back_yet() -> None:
    inner = MemoryBackend()
    backend = FaultyBackend(inner)
    async with await attached(backend) as volume:
        await volume.write(block_bytes(1), 0)
        await volume.snapshot("s")
        await volume.write(block_bytes(2), 0)
        backend.add(fail("discard"))
        await volume.delete_snapshot("s")
        assert isinstance(volume.background_error, BackendError)
        backend.clear()
    async with open_volume(inner, "v", options=QUIET) as volume:
        assert not volume.snapshots()
        await exact(inner, volume)


async def test_a_first_attach_that_fails_half_way_leaks_nothing() -> None:
    inner = MemoryBackend()
    await create_volume(inner, "v")
    for _ in range(3):
        with pytest.raises(BackendError):
            async with open_volume(FaultyBackend(inner, [fail("put_manifest", nth=2)]), "v"):
                pass
    async with open_volume(inner, "v", options=QUIET) as volume:
        await exact(inner, volume)


async def test_a_mark_is_no_unflushed_data() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=LogOptions(idle_seconds=0)) as volume:
        await volume.write(block_bytes(1), 0)
        await volume.flush()
        assert volume._log is not None
        sequence = volume._log.sequence
        with trio.fail_after(5):
            while volume._log.sequence == sequence:
                await trio.lowlevel.checkpoint()
        assert volume.durability == (0, 0.0)


async def test_a_snapshot_on_its_way_out_can_not_be_opened() -> None:
    inner = MemoryBackend()
    seen: list[BaseException] = []

    async def hook(step: Step) -> None:
        if step.call == "write" and step.after and not seen:
            try:
                async with volume.view("s"):
                    pytest.fail("opened")
            except VolumeBusy as error:
                seen.append(error)

    backend = Hooked(inner)
    async with await attached(backend) as volume:
        await volume.write(block_bytes(1), 0)
        await volume.snapshot("s")
        backend.hook = hook
        await volume.delete_snapshot("s")
        backend.hook = None
        assert seen
        assert not volume.snapshots()


async def test_slow_calls_change_nothing() -> None:
    inner = MemoryBackend()
    calls = ("read", "write", "flush", "discard", "get_manifest", "put_manifest")
    backend = FaultyBackend(inner, [delay(call, seconds=0.0001) for call in calls])
    life = Life(backend)
    with trio.fail_after(30):
        await life.live(retry=False)
    assert not life.told
    await verify(inner, life)
