"""A device whose power can be cut: every write and every flush is noted, and what a cut leaves is made from that."""

import os
import random
import threading
from dataclasses import dataclass
from pathlib import Path

from fusevol.backends.device.disk import Disk

SECTOR = 512


@dataclass(frozen=True)
class Write:
    """One write that was begun. durable: on stable storage when it returned."""

    offset: int
    data: bytes
    durable: bool


class Journal:
    """What was done to a device, in order: writes when they returned, and None for a flush when that began.

    The device does one thing at a time, so what is not there yet at some point has not begun, but for the next one.
    """

    def __init__(self) -> None:
        self.entries: list[Write | None] = []
        self.lock = threading.Lock()

    def materialise(self, cut: int, choose: random.Random, path: Path, size: int) -> None:
        """Make a device as a cut after so many entries may leave it: what was flushed is there, the rest perhaps."""
        done = self.entries[:cut]
        flushed = max((at for at, entry in enumerate(done) if entry is None), default=0)
        path.unlink(missing_ok=True)
        path.touch()
        os.truncate(path, size)
        with open(path, "r+b") as file:
            for at, entry in enumerate(self.entries[: cut + 1]):
                if entry is None:
                    continue
                sure = at < cut and (at < flushed or entry.durable)
                luck = 1.0 if sure else choose.choice([0.0, 0.5, 1.0])
                step = len(entry.data) if luck == 1 else SECTOR
                for start in range(0, len(entry.data), step):
                    if choose.random() < luck:
                        file.seek(entry.offset + start)
                        file.write(entry.data[start : start + step])


class RecordedDisk(Disk):
    """A disk that notes what is done to it in `journal`, one thing at a time."""

    journal = Journal()

    def write(self, data: memoryview, offset: int, *, durable: bool = False) -> None:
        with self.journal.lock:
            super().write(data, offset, durable=durable)
            self.journal.entries.append(Write(offset, bytes(data), durable))

    def write_table(self, data: bytes, offset: int) -> None:
        with self.journal.lock:
            super().write_table(data, offset)
            self.journal.entries.append(Write(offset, bytes(data), durable=False))

    def sync(self) -> None:
        with self.journal.lock:
            super().sync()
            self.journal.entries.append(None)
