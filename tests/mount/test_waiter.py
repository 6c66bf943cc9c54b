"""The waiter for requests, on a pipe: who gets the turn, when it polls, and when it must not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from fusevol.mount import waiter as module
from fusevol.mount.waiter import PollingWaiter


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def put(self) -> None:
        os.write(self.write_end, b"x")

    def take(self) -> None:
        os.read(self.read_end, 1)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.read_end)
    os.close(pipe.write_end)


async def test_it_returns_at_once_where_a_request_is_there(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    waiter.started()
    pipe.put()
    assert await waiter.wait()
    assert (waiter.polled, waiter.slept) == (1, 0)


async def test_it_sleeps_until_a_request_comes(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            waiter.started()
            assert await waiter.wait()

        await trio.testing.wait_all_tasks_blocked()
        pipe.put()
    assert (waiter.polled, waiter.slept) == (0, 1)


async def test_only_one_of_many_waits_for_the_descriptor_and_one_takes_over_when_it_is_busy(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    handled: list[int] = []
    proceed = trio.Event()

    async def serve(number: int) -> None:
        waiter.started()
        while await waiter.wait():
            pipe.take()
            handled.append(number)
            await proceed.wait()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(serve, number)
        await trio.testing.wait_all_tasks_blocked()
        for count in range(1, 5):
            pipe.put()
            await trio.testing.wait_all_tasks_blocked()
            assert len(handled) == count
        assert sorted(handled) == [0, 1, 2, 3]
        pipe.put()
        await trio.testing.wait_all_tasks_blocked()
        assert len(handled) == 4
        proceed.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(handled) == 5
        waiter.close()


async def test_a_handler_that_does_not_wait_keeps_the_lead(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    handled: list[int] = []

    async def serve(number: int) -> None:
        waiter.started()
        while await waiter.wait():
            pipe.take()
            handled.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(serve, number)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            pipe.put()
        await trio.testing.wait_all_tasks_blocked()
        assert len(handled) == 20
        assert len(set(handled)) <= 2
        waiter.close()


async def test_as_many_tasks_serve_as_there_are_requests_at_once_however_many_there_are(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    tasks, served, most = 1, set[trio.lowlevel.Task](), 50
    proceed = trio.Event()

    async def serve() -> None:
        nonlocal tasks
        waiter.started()
        while await waiter.wait():
            pipe.take()
            served.add(trio.lowlevel.current_task())
            if tasks < most:  # as pyfuse3 does
                tasks += 1
                nursery.start_soon(serve)
            await proceed.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for _ in range(2 * most):
            for _ in range(3):
                pipe.put()
            await trio.testing.wait_all_tasks_blocked()
            proceed.set()
            proceed = trio.Event()
            await trio.testing.wait_all_tasks_blocked()
        assert tasks == most
        assert len(served) <= 4
        waiter.close()


async def test_other_tasks_run_while_requests_never_cease(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    pipe.put()
    with trio.move_on_after(5) as limit:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            waiter.started()
            end = time.perf_counter() + 20 * module.TURN
            while time.perf_counter() < end:
                assert await waiter.wait()
            nursery.cancel_scope.cancel()
    assert not limit.cancelled_caught
    # 20 on a machine that does nothing else.
    assert turns >= 4


async def test_it_does_not_poll_while_a_handler_waits(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 3600.0)
    waiter = PollingWaiter(pipe.read_end)

    async def serve() -> None:
        waiter.started()
        while await waiter.wait():
            pipe.take()
            await trio.sleep_forever()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(serve)
            for _ in range(2):
                # Would never come back if it polled for an hour.
                await trio.testing.wait_all_tasks_blocked()
                pipe.put()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_it_stops_polling_after_some_in_vain(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    waiter.started()
    for _ in range(3 * module.PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter.wait)
            await trio.testing.wait_all_tasks_blocked(cushion=2 * module.WINDOW)
            pipe.put()
        pipe.take()
    assert waiter.polled == 0
    before = time.process_time()
    with trio.move_on_after(0.2):
        await waiter.wait()
    assert time.process_time() - before < 0.05


async def test_closing_ends_all_waits_present_and_future(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    ended = 0

    async def serve() -> None:
        nonlocal ended
        waiter.started()
        assert not await waiter.wait()
        ended += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        waiter.close()
    assert ended == 3
    await serve()


async def test_an_error_of_the_descriptor_ends_all_waits(pipe: Pipe) -> None:
    # As /dev/fuse is when the mount is gone: an error, nothing to read.
    waiter = PollingWaiter(pipe.write_end)
    os.close(pipe.read_end)
    try:
        waiter.started()
        waiter.started()
        assert not await waiter.wait()
        assert not await waiter.wait()
    finally:
        pipe.read_end = os.dup(pipe.write_end)


async def test_cancelled_waits_are_forgotten(pipe: Pipe) -> None:
    waiter = PollingWaiter(pipe.read_end)
    for _ in range(3):
        waiter.started()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(waiter.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    pipe.put()
    waiter.started()
    assert await waiter.wait()
