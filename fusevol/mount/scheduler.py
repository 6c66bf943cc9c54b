"""Taking the snapshots of a volume's schedule while it is mounted, and deleting those that are not to be kept any more.

A volume that is not mounted does not change, so nothing has to be taken meanwhile. What was due then, or while the
process was down, is made up for once when it is mounted. Nothing is remembered for that: the last snapshot of a kind
says up to when its times have been seen to.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import trio

from fusevol.api.names import by_name
from fusevol.errors import FusevolError, SnapshotNotFound, VolumeBusy, VolumeHasSnapshots
from fusevol.log import Snapshot
from fusevol.mount.schedule import SCHEDULE_LABEL, Schedule, utc_text
from fusevol.mount.served import Served
from fusevol.mount.settings import Settings

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)

#: How long to wait before a snapshot that failed is tried again, in seconds.
_RETRY_SECONDS = 60.0
#: How often to look at the clock at least, in seconds: it may be set, and it stands still for a machine that sleeps.
_LOOK_SECONDS = 60.0


class Scheduler:
    """The schedule of one mounted volume. A task has to be at `run`.

    note: is told, in one line, why a snapshot that is due is not taken, and "" once it is. clock: seconds since 1970.
    """

    def __init__(
        self,
        served: Served,
        note: Callable[[str], Awaitable[None]],
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._served = served
        self._note = note
        self._clock = clock
        self._schedule = settings.schedule
        #: By kind of rule, up to when its times have been seen to.
        self._since = {kind: self._last_time(kind, settings.created) for kind in self._schedule.keep}
        self._changed = trio.Event()
        self._retry_at = 0.0
        #: Why a snapshot that is due could not be taken, in one line; "" where there is none.
        self.error = ""

    def _last_time(self, kind: str, otherwise: float) -> float:
        last = self._last(kind)
        return last.created / 1e9 if last else otherwise

    def follow(self, schedule: Schedule) -> None:
        """Go by another schedule from now on; what is new in it is due from now on only."""
        if schedule == self._schedule:
            return
        before, now = self._schedule, self._clock()
        self._since = {
            kind: self._since[kind] if before.of(kind) == schedule.of(kind) else now for kind in schedule.keep
        }
        self._schedule = schedule
        self._changed.set()

    def look(self) -> None:
        """Look at the clock now, and try again what failed."""
        self._retry_at = 0.0
        self._changed.set()

    def next(self) -> float | None:
        """When the next snapshot is due; in the past for one that could not be taken yet. None: never."""
        times = (self._schedule.after(since, kind) for kind, since in self._since.items())
        return min((moment for moment in times if moment is not None), default=None)

    def state(self) -> dict[str, Any]:
        """As a JSON object. next: when a snapshot is due, RFC 3339. last: name of the last one by schedule."""
        following, taken = self.next(), [s for s in self._served.volume.snapshots() if SCHEDULE_LABEL in s.labels]
        return {
            "next": None if following is None else utc_text(following),
            "last": taken[-1].name if taken else None,
            "error": self.error or None,
        }

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take what is due, for ever."""
        while True:
            self._changed = trio.Event()
            if not self.error or trio.current_time() >= self._retry_at:
                await self._take_due()
            following = self.next()
            if following is None:
                await self._changed.wait()
                continue
            wait = max(0.0, following - self._clock())
            if self.error:
                wait = max(wait, self._retry_at - trio.current_time())
            with trio.move_on_after(min(wait, _LOOK_SECONDS)):
                await self._changed.wait()

    async def _take_due(self) -> None:
        now, failure = self._clock(), ""
        for kind in self._schedule.keep:
            # A clock that was set back must not stop everything until it is where it was.
            self._since[kind] = min(self._since[kind], now)
            following = self._schedule.after(self._since[kind], kind)
            if following is None or following > now:
                continue
            try:
                await self._take(kind, now)
                self._since[kind] = now
                await self._retire(kind)
            except (FusevolError, OSError) as error:
                reason = str(error) if isinstance(error, FusevolError) else error.strerror or str(error)
                reason = by_name(reason, self._served.volume.volume_id, self._served.name)
                failure = f"the {kind} snapshot of {utc_text(following)} could not be taken: {reason}"
                self._retry_at = trio.current_time() + _RETRY_SECONDS
        before, self.error = self.error, failure
        if failure != before:
            await self._note(failure)

    async def _take(self, kind: str, now: float) -> None:
        """Take a snapshot of a kind, unless nothing was written since the last of it."""
        name = self._name(kind, now)
        if await self._served.snapshot_if_changed(name, {SCHEDULE_LABEL: kind}, self._last(kind)):
            log.info("snapshot %s is taken", name)

    def _name(self, kind: str, now: float) -> str:
        """A name that is free; the minute tells it by itself unless clocks are set back."""
        there = {snapshot.name for snapshot in self._served.volume.snapshots()}
        first = name = f"{kind}-{datetime.fromtimestamp(now):%Y%m%d-%H%M}"
        number = 1
        while name in there:
            number += 1
            name = f"{first}-{number}"
        return name

    def _of(self, kind: str) -> list[Snapshot]:
        """The snapshots that this schedule made of a kind, oldest first."""
        return [item for item in self._served.volume.snapshots() if item.labels.get(SCHEDULE_LABEL) == kind]

    def _last(self, kind: str) -> Snapshot | None:
        found = self._of(kind)
        return found[-1] if found else None

    async def _retire(self, kind: str) -> None:
        """Delete those of a kind that are too many, but none that is in use."""
        for snapshot in self._of(kind)[: -self._schedule.keep[kind]]:
            try:
                await self._served.delete_snapshot(snapshot.name)
            except (VolumeBusy, VolumeHasSnapshots) as error:
                log.debug("%s stays for now: %s", snapshot.name, error)
                continue
            except SnapshotNotFound:
                continue
            log.info("snapshot %s is deleted: %d are kept", snapshot.name, self._schedule.keep[kind])
