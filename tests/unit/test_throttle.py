"""Bounds on reads and writes: never faster, in order, and changed at any time."""

import trio
import trio.testing
from trio.testing import MockClock

from fusevol.api import IoThrottle
from fusevol.mount.throttle import Throttle

MB = 1_000_000


async def test_bytes_take_at_least_the_time_that_they_are_to_take(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(write_bw_mbytes=10))
    begun = trio.current_time()
    for _ in range(100):
        await throttle.write(MB)
    # Of 100 MB the last is not waited for, and a tenth of a second may come at once.
    assert 9.8 - 1e-6 <= trio.current_time() - begun <= 9.9 + 1e-6


async def test_operations_are_counted_whatever_their_size(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(read_iops=50))
    begun = trio.current_time()
    for _ in range(101):
        await throttle.read(1 << 20)
    assert 1.9 - 1e-6 <= trio.current_time() - begun <= 2.0 + 1e-6


async def test_the_tighter_of_two_bounds_counts(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(read_iops=10, read_bw_mbytes=1))
    for size, least in ((1, 1.8), (MB, 18.8)):
        begun = trio.current_time()
        for _ in range(20):
            await throttle.read(size)
        assert least - 1e-6 <= trio.current_time() - begun <= least + 1.2


async def test_a_pause_saves_up_no_more_than_a_tenth_of_a_second(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(write_iops=100))
    await throttle.write(1)
    await trio.sleep(3600)
    begun = trio.current_time()
    for _ in range(10):
        await throttle.write(1)
    assert trio.current_time() == begun
    for _ in range(2):
        await throttle.write(1)
    assert trio.current_time() > begun


async def test_requests_begin_in_the_order_in_which_they_came(autojump_clock: MockClock) -> None:
    throttle, begun = Throttle(IoThrottle(write_bw_mbytes=1)), []

    async def write(number: int, size: int) -> None:
        await throttle.write(size)
        begun.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(write, number, MB if number % 2 else 4096)
            await trio.testing.wait_all_tasks_blocked()
    assert begun == list(range(20))


async def test_reads_do_not_wait_for_bounds_on_writes(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(write_iops=1))
    begun = trio.current_time()
    for _ in range(100):
        await throttle.read(MB)
    assert trio.current_time() == begun


async def test_who_waits_goes_by_bounds_that_are_changed_meanwhile(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(write_bw_mbytes=1))
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(throttle.write, 1000 * MB)
        await trio.sleep(10)
        throttle.set(IoThrottle(write_bw_mbytes=1000))
    assert 18 - 0.2 <= trio.current_time() - begun <= 20
    async with trio.open_nursery() as nursery:
        throttle.set(IoThrottle(write_iops=1))
        for _ in range(1000):
            nursery.start_soon(throttle.write, 1)
        await trio.sleep(10)
        now = trio.current_time()
        throttle.set(IoThrottle())
    assert trio.current_time() == now


async def test_all_bounds_are_lifted_when_the_mount_is_told_to_end(autojump_clock: MockClock) -> None:
    throttle = Throttle(IoThrottle(write_iops=1))
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(throttle.write, 1)
        with trio.move_on_after(10):
            await throttle.run()
        now = trio.current_time()
    assert trio.current_time() == now
