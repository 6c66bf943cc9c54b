"""Requests as they are served: what runs now, and counters in the manner of /proc/diskstats."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic_ns, time_ns
from typing import NamedTuple

from fusevol.mount.nodes import CONTROL_NODE, node_of

__all__ = ["ActiveRequest", "Counters", "Requests"]


class ActiveRequest(NamedTuple):
    """A request being served: its number, operation, inode, and age in seconds."""

    number: int
    operation: str
    inode: int
    age: float


class Counters:
    """Cumulative counters since the mount. Times in nanoseconds; busy: time with at least one request under way."""

    __slots__ = ("busy", "discard_bytes", "discards", "read_bytes", "read_ns", "reads", "requests", "write_bytes",
                 "write_ns", "writes")  # fmt: skip

    def __init__(self) -> None:
        self.reads = self.read_bytes = self.read_ns = 0
        self.writes = self.write_bytes = self.write_ns = 0
        self.discards = self.discard_bytes = 0
        self.requests = self.busy = 0


class Requests:
    """All requests of a mount."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.mounted_at = time_ns()
        self._active: dict[int, tuple[str, int, int]] = {}
        self._next = 0
        self._busy_since = 0
        self._asking = 0

    def begin(self, operation: str, inode: int) -> int:
        """A request starts; returns its number, for `end`."""
        number = self._next
        self._next = number + 1
        now = monotonic_ns()
        if not self._active:
            self._busy_since = now
        self._active[number] = (operation, inode, now)
        return number

    def end(self, number: int) -> int:
        """It is over; returns the nanoseconds it took."""
        now = monotonic_ns()
        operation, inode, started = self._active.pop(number)
        self.counters.requests += 1
        if inode < CONTROL_NODE:
            if operation == "read":
                self.counters.read_ns += now - started
            elif operation == "write":
                self.counters.write_ns += now - started
        if not self._active:
            self.counters.busy += now - self._busy_since
        return now - started

    @contextmanager
    def waiting(self, operation: str, inode: int) -> Iterator[None]:
        """Inside, a request waits for its turn to begin: it is shown, and its time counts, but it is not yet one."""
        number = self.begin(operation, inode)
        try:
            yield
        finally:
            self.end(number)
            self.counters.requests -= 1

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Inside, a request for one of the root's attributes is a question about the volume, which is not counted."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    def active(self) -> list[ActiveRequest]:
        """What is being served, oldest first; of control files commands only: the question itself is read there."""
        now = monotonic_ns()
        return [
            ActiveRequest(number, operation, node_of(inode), (now - started) / 1e9)
            for number, (operation, inode, started) in self._active.items()
            if inode < CONTROL_NODE or operation == "write"
        ]

    @property
    def alone(self) -> bool:
        """Whether whoever asks is the only one that is being served."""
        return len(self._active) <= 1

    def __len__(self) -> int:
        """How many are being served, without questions about that."""
        return len(self.active()) - self._asking
