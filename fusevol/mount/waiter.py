"""Waiting for the next request: a short poll, then trio.

The way through trio (register with epoll, switch tasks, wake up) costs a third of a round trip. While requests
come one after the other, the next is there within microseconds; so the task that waits polls the descriptor
for up to `WINDOW` first. The price is that trio's other tasks do not run meanwhile, hence the rules:

- Fair: after `TURN` of serving without a pause all other tasks are run once, even if requests are waiting.
- No polling while a handler waits for something (a thread, a timer): what it waits for comes through trio.
- No polling without prospects: after `PATIENCE` polls in vain there are none until a request has again come
  within `HOPE`. An idle mount sleeps in epoll and uses no CPU at all.

pyfuse3 starts as many tasks as there may be requests at once, and each calls `wait` for its next. One of them,
the leader, polls or sleeps; the others are parked, and the last one parked is the first to be woken. When the leader
leaves with a request, one parked task is made runnable: it runs only if the handler gives up control, and takes the
lead then. A task has a buffer for the largest request from its first one on, and keeps it; so those that have none yet
come last, and there are as many buffers as there ever were requests at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

import trio

from fusevol.mount.wakeful import Wakefulness

__all__ = ["PollingWaiter"]

#: For how long to poll, in seconds.
WINDOW = 200e-6
#: For how long to serve without letting other tasks run, in seconds.
TURN = 1e-3
#: How many polls in vain are one too many.
PATIENCE = 4
#: A request that came this soon, in seconds, gives hope again: it includes the time to wake up.
HOPE = 500e-6


class PollingWaiter:
    """Waits for the descriptor `fd` to be readable, for many tasks of one trio loop.

    `started` is to be called when a task begins that will call `wait`, for this is how the waiter knows how
    many of them handle a request.

    wakefulness: what keeps the processors awake while requests come one after the other.
    """

    def __init__(self, fd: int, wakefulness: Wakefulness | None = None) -> None:
        self._fd = fd
        self._wakefulness = wakefulness
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)
        self._closed = False
        self._leading = False
        self._in_epoll = False
        self._parked: list[trio.lowlevel.Task] = []
        #: Tasks that have not served yet.
        self._fresh: set[trio.lowlevel.Task] = set()
        self._standby_runnable = False
        self._handling = 0
        self._vain = PATIENCE
        self._turn_ends = 0.0
        #: How often a request was found by polling, and how often it took the way through trio.
        self.polled = 0
        self.slept = 0

    def started(self) -> None:
        """A task begins; it counts as handling a request until it waits."""
        self._handling += 1
        self._fresh.add(trio.lowlevel.current_task())

    def taken_on(self) -> None:
        """Another task, which does not call `wait`, handles a request; until `let_go`."""
        self._handling += 1

    def let_go(self) -> None:
        """It has handled it."""
        self._handling -= 1

    async def wait(self) -> bool:
        """Return True when there is a request to read, False when there will be none any more."""
        self._handling -= 1
        while not self._closed:
            # A new one leaves the lead to whoever is coming.
            if self._leading or (self._standby_runnable and trio.lowlevel.current_task() in self._fresh):
                await self._park()
                continue
            self._leading = True
            try:
                readable = await self._lead()
            finally:
                self._leading = False
            if not readable:
                self.close()
                break
            self._handling += 1
            self._fresh.discard(trio.lowlevel.current_task())
            self._make_standby_runnable()
            return True
        return False

    def close(self) -> None:
        """Make all waits, present and future ones, return False."""
        self._closed = True
        if self._in_epoll:
            trio.lowlevel.notify_closing(self._fd)
        while self._parked:
            trio.lowlevel.reschedule(self._parked.pop())

    async def _lead(self) -> bool:
        clock = time.perf_counter
        now = clock()
        if self._wakefulness is not None:
            self._wakefulness.served += 1
        if now >= self._turn_ends:
            await trio.lowlevel.checkpoint()
            now = clock()
            self._turn_ends = now + TURN
            if self._wakefulness is not None:
                self._wakefulness.notice(now)
        poll = self._poller.poll
        events = poll(0)
        if not events and not self._handling and self._vain < PATIENCE:
            events = self._poll_for_a_while()
            self._vain = 0 if events else self._vain + 1
        if events:
            self.polled += 1
        while not events and not self._closed:
            before = clock()
            self._in_epoll = True
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._fd)
            self._in_epoll = False
            # Asked again: a request may have been withdrawn by the kernel (its caller was killed).
            events = poll(0)
            now = clock()
            self._turn_ends = now + TURN
            self.slept += 1
            if now - before < HOPE:
                self._vain = 0
        # The device is in an error state once the mount or the connection has ended.
        return not self._closed and bool(events[0][1] & select.POLLIN)

    def _poll_for_a_while(self) -> list[tuple[int, int]]:
        # Asking again and again rather than sleeping in select(2): to wake a processor that has gone idle costs
        # a virtual machine more than the whole request. Whoever else is runnable here gets its turn.
        deadline = time.perf_counter() + WINDOW
        while not (events := self._poller.poll(0)) and time.perf_counter() < deadline:
            os.sched_yield()
        return events

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.insert(0 if task in self._fresh else len(self._parked), task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._standby_runnable = False

    def _make_standby_runnable(self) -> None:
        if self._parked and not self._standby_runnable:
            self._standby_runnable = True
            trio.lowlevel.reschedule(self._parked.pop())
