"""Stores, and journals, on which a log is not safe: the oracle must notice."""

from dataclasses import replace

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend
from fusevol.backends.wrappers.recording import Event, Journal
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.log.format import KIND_DATA
from fusevol.testing.crash import Recorded
from fusevol.testing.timeline import Timeline
from fusevol.testing.workload import Known


class NeverFlushes(Wrapper):
    """Tells the log that everything is on stable storage, and does nothing for it."""

    async def flush(self, volume_id: str) -> None:
        return


class FlushesOnlyCheckpoints(Wrapper):
    """Leaves out the flushes of barriers: those before which data was written last, and not the map."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.kinds: dict[str, int] = {}

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        self.kinds[volume_id] = data[10]  # the kind, in a batch's header
        return await self.inner.write(volume_id, data, offset)

    async def flush(self, volume_id: str) -> None:
        if self.kinds.get(volume_id) != KIND_DATA:
            await self.inner.flush(volume_id)


def discarding_early(recorded: Recorded) -> Recorded:
    """The same life, of a log that gives space back right before it puts the manifest that frees it, not after."""
    old = recorded.journal.events
    put: dict[str, int] = {}  # by volume: where the last put began, of those that have returned
    before: dict[int, list[int]] = {}
    moved = set()
    for at, (what, call) in enumerate(old):
        if call.kind == "put_manifest" and what == "end" and call.error is None:
            put[call.volume_id] = call.begin
        elif call.kind == "discard" and what == "begin" and call.end is not None and call.volume_id in put:
            before.setdefault(put[call.volume_id], []).extend((at, call.end))
            moved |= {at, call.end}
    order: list[int] = []
    for at in range(len(old)):
        order += before.get(at, [])
        if at not in moved:
            order.append(at)
    place = {at: new for new, at in enumerate(order)}
    calls = {
        id(call): replace(call, begin=place[call.begin], end=None if call.end is None else place[call.end])
        for _, call in old
    }
    events = [Event(old[at].what, calls[id(old[at].call)]) for at in order]
    journal = Journal(events, recorded.journal.base, recorded.journal.atomic_writes)

    def position(at: int | None) -> int | None:
        """Behind the last event before it that stays where it is."""
        if at is None:
            return None
        return next((place[event] + 1 for event in range(at - 1, -1, -1) if event not in moved), 0)

    def certain(at: int) -> int:
        return position(at) or 0

    volumes = {}
    for volume_id, known in recorded.volumes.items():
        twin = Known(known.model, certain(known.begun), origin=known.origin)
        twin.made, twin.deleting, twin.deleted = map(position, (known.made, known.deleting, known.deleted))
        barriers = [
            replace(barrier, begun=certain(barrier.begun), ended=position(barrier.ended))
            for barrier in known.timeline.barriers
        ]
        twin.timeline = Timeline(volume_id, barriers)
        volumes[volume_id] = twin
    return replace(recorded, journal=journal, volumes=volumes)
