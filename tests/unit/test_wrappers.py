"""Wrappers forward everything, and add exactly what they say."""

import random
import time
from collections.abc import Callable

import pytest
import trio
import trio.testing

from fusevol.backends.base import NO_VERSION, Backend, Traits
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.counting import CountingBackend, Counts
from fusevol.backends.wrappers.faults import FaultyBackend, Rule, delay, fail, flip, full, short, torn
from fusevol.backends.wrappers.recording import RecordingBackend
from fusevol.errors import BackendError, InvalidArgument, NoSpace


async def faulty(*rules: Rule, seed: int = 0, inner: MemoryBackend | None = None) -> FaultyBackend:
    backend = FaultyBackend(inner or MemoryBackend(), rules, seed=seed)
    await backend.inner.create("v")
    return backend


async def outcomes(backend: FaultyBackend, n: int) -> list[bool]:
    """Which of n writes worked."""
    worked = []
    for i in range(n):
        try:
            await backend.write("v", b"x", i)
        except BackendError:
            worked.append(False)
        else:
            worked.append(True)
    return worked


@pytest.mark.parametrize("wrapper", [FaultyBackend, RecordingBackend, CountingBackend])
def test_a_wrapper_has_the_traits_of_what_it_wraps(wrapper: Callable[[Backend], Backend]) -> None:
    inner = MemoryBackend()
    inner.traits = Traits(rewritable=False, atomic_writes=True)
    assert wrapper(wrapper(inner)).traits == inner.traits


async def test_nth_strikes_once_and_before_any_effect() -> None:
    backend = await faulty(fail("write", nth=3, error=NoSpace))
    assert await outcomes(backend, 5) == [True, True, False, True, True]
    assert await backend.read("v", 5, 0) == b"xx\0xx"
    with pytest.raises(NoSpace, match="injected into write"):
        await (await faulty(fail("write", error=NoSpace))).write("v", b"x", 0)


async def test_every_kth_and_times_limit_how_often_a_rule_strikes() -> None:
    assert await outcomes(await faulty(fail("write", every=2)), 5) == [True, False, True, False, True]
    assert await outcomes(await faulty(fail("write", times=2)), 4) == [False, False, True, True]


async def test_probability_follows_the_seed() -> None:
    one, same, other = [
        await outcomes(await faulty(fail("write", probability=0.5), seed=seed), 64) for seed in (1, 1, 2)
    ]
    assert one == same != other
    assert 10 < sum(one) < 54


async def test_adding_a_rule_does_not_move_the_faults_of_another() -> None:
    alone = await outcomes(await faulty(fail("write", probability=0.5)), 64)
    both = await outcomes(await faulty(fail("write", probability=0.5), flip(probability=0.5)), 64)
    assert alone == both


async def test_a_rule_can_be_for_one_volume() -> None:
    backend = await faulty(fail("flush", volume_id="w"))
    await backend.create("w")
    await backend.flush("v")
    with pytest.raises(BackendError):
        await backend.flush("w")


async def test_full_refuses_writes_beyond_its_budget_until_space_is_freed() -> None:
    rule = full(after=10)
    backend = await faulty(rule)
    await backend.write("v", b"x" * 8, 0)
    with pytest.raises(NoSpace):
        await backend.write("v", b"y" * 3, 8)
    assert await backend.write("v", b"y" * 2, 8) == 2
    rule.budget = 3
    assert await backend.write("v", b"z" * 3, 10) == 3
    assert await backend.read("v", 99, 0) == b"xxxxxxxxyyzzz"


async def test_an_error_after_the_effect_leaves_the_effect() -> None:
    backend = await faulty(fail("write", after=True), fail("put_manifest", after=True))
    with pytest.raises(BackendError):
        await backend.write("v", b"x", 0)
    with pytest.raises(BackendError):
        await backend.put_manifest("v", b"m", NO_VERSION)
    assert await backend.read("v", 1, 0) == b"x"
    assert (await backend.get_manifest("v")).data == b"m"


async def test_a_short_write_writes_the_part_it_says() -> None:
    backend = await faulty(short(keep=2, nth=1), short())
    assert await backend.write("v", b"abcd", 0) == 2
    assert await backend.read("v", 9, 0) == b"ab"
    assert await backend.write("v", b"abcd", 0) < 4


async def test_a_torn_write_leaves_whole_sectors_of_the_store_and_raises() -> None:
    backend = await faulty(torn(), seed=3)
    data = bytes(random.Random(1).randbytes(8192))
    with pytest.raises(BackendError):
        await backend.write("v", data, 100)
    got = bytes(await backend.read("v", 8292, 0)).ljust(8292, b"\0")
    sectors = [(max(s, 100), min(s + 512, 8292)) for s in range(0, 8292, 512)]
    kept = [got[a:b] == data[a - 100 : b - 100] for a, b in sectors]
    assert all(k or not any(got[a:b]) for k, (a, b) in zip(kept, sectors, strict=True))
    assert True in kept
    assert False in kept


async def test_a_torn_write_is_all_or_nothing_where_writes_are_atomic() -> None:
    inner = MemoryBackend()
    inner.traits = Traits(atomic_writes=True)
    backend = await faulty(torn(), inner=inner)
    seen = set()
    for i in range(20):
        with pytest.raises(BackendError):
            await backend.write("v", b"x" * 1024, i * 1024)
        seen.add(bytes(await backend.read("v", 1024, i * 1024)).strip(b"\0"))
    assert seen == {b"", b"x" * 1024}


async def test_a_delay_sleeps_before_the_call(autojump_clock: trio.testing.MockClock) -> None:
    backend = await faulty(delay("flush", seconds=5), delay("flush", seconds=2))
    before = trio.current_time()
    await backend.flush("v")
    assert trio.current_time() - before == pytest.approx(7)


async def test_read_nowait_meets_the_faults_of_read() -> None:
    backend = await faulty(fail("read", nth=2))
    await backend.write("v", b"a", 0)
    assert backend.read_nowait("v", 1, 0) == b"a"
    with pytest.raises(BackendError):
        backend.read_nowait("v", 1, 0)
    assert await backend.read("v", 1, 0) == b"a"


async def test_read_nowait_that_would_be_delayed_leaves_the_fault_to_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    backend = await faulty(delay("read", seconds=1, nth=1), fail("read", nth=2))
    await backend.write("v", b"a", 0)
    assert backend.read_nowait("v", 1, 0) is None
    assert backend.read_nowait("v", 1, 0) is None
    before = trio.current_time()
    assert await backend.read("v", 1, 0) == b"a"
    assert trio.current_time() == before + 1
    with pytest.raises(BackendError):
        await backend.read("v", 1, 0)


async def test_flip_changes_one_bit_of_what_is_read_and_none_of_what_is_stored() -> None:
    backend = await faulty(flip(nth=1))
    await backend.write("v", bytes(64), 0)
    assert sum(byte.bit_count() for byte in await backend.read("v", 64, 0)) == 1
    assert await backend.read("v", 64, 0) == bytes(64)


async def test_rules_can_be_added_and_cleared_while_running() -> None:
    backend = await faulty()
    await backend.flush("v")
    backend.add(fail("flush"))
    with pytest.raises(BackendError):
        await backend.flush("v")
    assert (backend.rules[0].seen, backend.rules[0].fired) == (1, 1)
    backend.clear()
    await backend.flush("v")


def test_a_rule_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no call 'fsync' to fail; known"):
        FaultyBackend(MemoryBackend(), [fail("fsync")])
    with pytest.raises(InvalidArgument, match="one of"):
        fail("read", nth=1, every=2)


async def test_counting_counts_calls_bytes_and_errors() -> None:
    backend = CountingBackend(FaultyBackend(MemoryBackend(), [fail("write", nth=2)]))
    await backend.create("v")
    await backend.write("v", b"abc", 0)
    with pytest.raises(BackendError):
        await backend.write("v", b"abc", 0)
    await backend.read("v", 2, 0)
    backend.read_nowait("v", 1, 0)
    assert backend["write"] == Counts(calls=2, bytes=3, errors=1, most_in_flight=1)
    assert backend["read"] == Counts(calls=2, bytes=3, most_in_flight=1)
    assert backend["flush"] == Counts()
    assert set(backend.counts()) == {"create", "write", "read"}
    backend.reset()
    assert backend["write"] == Counts()


async def test_counting_knows_the_calls_in_flight() -> None:
    backend = CountingBackend(FaultyBackend(MemoryBackend(), [delay("flush", seconds=60)]))
    await backend.create("v")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.flush, "v")
        nursery.start_soon(backend.flush, "v")
        await trio.testing.wait_all_tasks_blocked()
        assert (backend.in_flight, backend["flush"].in_flight) == (2, 2)
        nursery.cancel_scope.cancel()
    assert (backend.in_flight, backend["flush"].most_in_flight, backend["flush"].errors) == (0, 2, 2)


async def test_the_memory_backend_counts_pages_held_exactly() -> None:
    backend = MemoryBackend()
    await backend.create("v")
    await backend.write("v", bytes(40 * 4096), 4096 * 5)
    await backend.discard("v", 7 * 4096, 4096 * 20)
    assert await backend.used_size("v") == 33 * 4096
    await backend.discard("v", 2**62, 0)
    assert await backend.used_size("v") == 0
    assert len(await backend.read("v", 2**30, 0)) == 45 * 4096


async def test_the_memory_backend_holds_a_page_until_all_of_it_is_discarded_at_once() -> None:
    backend = MemoryBackend()
    await backend.create("v")
    await backend.write("v", b"x" * 5000, 0)
    assert await backend.used_size("v") == 8192
    await backend.discard("v", 4095, 1)
    assert await backend.used_size("v") == 8192
    await backend.discard("v", 5000, 0)
    assert await backend.used_size("v") == 0


async def test_discarding_a_vast_hole_is_quick() -> None:
    backend = MemoryBackend()
    await backend.create("v")
    await backend.write("v", b"x", 2**62)
    started = time.perf_counter()
    await backend.discard("v", 2**62, 0)
    assert time.perf_counter() - started < 1
    assert await backend.read("v", 9, 2**62) == b"x"
