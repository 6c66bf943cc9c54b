"""What the object backend knows of one volume, and the record of what is dead in it."""

import json

import trio

from fusevol.backends.object.client import Client, Missing
from fusevol.backends.object.index import Index, Stored
from fusevol.backends.object.uploads import Uploads

__all__ = ["KnownVolume"]


class KnownVolume:
    """What is known of one volume, and what is under way on it."""

    def __init__(self, client: Client, volume_id: str, prefix: str) -> None:
        self._client = client
        self.id = volume_id
        self.folder = f"{prefix}{volume_id}"
        self.data = f"{self.folder}/data"
        self.index = Index()
        self.loaded = False
        self.deleted = False
        #: Held while listing, so that what a listing removes was not added by a later one.
        self.listing = trio.Lock()
        #: Names deleted while a listing was under way: it may still show them.
        self.buried: set[str] = set()
        #: Writes under way: their ranges, and an event each that is set when they are done.
        self.uploads: dict[trio.Event, tuple[int, int]] = {}
        #: What all uploads go through.
        self.line = Uploads()
        #: Paths written or deleted since they were last made durable.
        self.unsynced: set[str] = set()
        #: Names in the `dead` object as it is stored, and whether it is out of date.
        self.recorded: set[str] = set()
        self.dead_changed = False

    def path(self, stored: Stored) -> str:
        """Of an object."""
        return f"{self.data}/{stored.name}"

    async def finish_uploads(self) -> None:
        """Wait for the writes that are under way now."""
        for done in [*self.uploads]:
            await done.wait()

    async def load_dead(self) -> None:
        """Recall what was discarded before this process began. Without the record nothing is lost but space."""
        try:
            record = json.loads(await self._client.get(f"{self.folder}/dead"))
            for name, runs in record.items():
                self.recorded.add(name)
                parsed = Stored.parse(name)
                stored = parsed and self.index.find(parsed.offset, parsed.length)
                for start, stop in runs if stored else ():
                    if stored:
                        stored.bury(start, stop)
        except (Missing, ValueError, AttributeError, TypeError):
            return

    async def save_dead(self) -> None:
        """Put on record what is dead, to be made durable with all that is `unsynced`."""
        self.dead_changed = False
        record = {stored.name: stored.dead for stored in self.index if stored.dead}
        path = f"{self.folder}/dead"
        if record or self.recorded:
            try:
                await self._client.replace(path, json.dumps(record, separators=(",", ":")).encode())
            except BaseException:
                self.dead_changed = True
                raise
            self.recorded = set(record)
            self.unsynced.add(path)
