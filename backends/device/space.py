"""Free blocks that this instance alone may write to, before the tables say whose they are.

Writing comes first, then the transaction: so a write is there whole or not at all, and what no transaction came to is
free again when its writer is gone. Others are kept away by locks (`Disk.hold`), which keep them from blocks, too, that
a writer who lost its volume is still writing to.
"""

import threading
from collections.abc import Iterator
from itertools import takewhile

from fusevol.backends.device.catalog import Catalog
from fusevol.backends.device.disk import Disk
from fusevol.errors import NoSpace

__all__ = ["QUIET", "Space", "Taken"]

Run = tuple[int, int]

#: Blocks that are held at a time, or a 64th of those that are free if that is less.
_HELD = 2048
_SHARE = 64
#: For so many seconds, or twice as long, they are held after the last write.
QUIET = 1.0
#: So many blocks at most the device is told of at a time, and so few are not worth it.
_TRIMMED, _WORTHWHILE = 1 << 15, 64
#: A write goes to so many places at most. Each is a row in the tables, and one transaction has to have room for them.
_PLACES = 128


class _Arena:
    """Blocks that are held together. users: writes of which nobody knows yet whether they came through."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.left: list[Run] = []
        self.users = 0


class Taken:
    """Blocks for a write, in the order in which they are to be written: (address, blocks)."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.arenas: list[_Arena] = []

    @property
    def blocks(self) -> int:
        """How many."""
        return sum(count for _, count in self.runs)


class Space:
    """The free blocks of a device. Threads may call it. Raises what the catalog and the device do."""

    def __init__(self, disk: Disk, catalog: Catalog) -> None:
        self._disk = disk
        self._catalog = catalog
        #: How often blocks were taken, and who lets go of those that are held once nobody takes any more.
        self._takes = 0
        self._keeper: threading.Thread | None = None
        self._closing = threading.Event()
        #: For who takes blocks; may have to wait for the tables.
        self._taking = threading.Lock()
        #: For what is held, and by how many writes; never kept for long, so the loop may ask for it.
        self._guard = threading.Lock()
        self._arena = _Arena()
        self._used_up: list[_Arena] = []

    def take(self, blocks: int, *, together: bool = False) -> Taken:
        """Blocks to write to; fewer where they are in many places. Raises NoSpace where there is none at all.

        together: in one place, if there is one.
        """
        taken = Taken()
        with self._taking:
            self._takes += 1
            try:
                if together and (not self._arena.left or self._arena.left[0][1] < blocks):
                    self._renew(blocks)
                while blocks and len(taken.runs) < _PLACES:
                    if not self._arena.left and not self._renew(blocks):
                        break
                    arena = self._arena
                    address, count = arena.left[0]
                    part = min(count, blocks)
                    arena.left[:1] = [(address + part, count - part)] if part < count else []
                    if arena not in taken.arenas:
                        with self._guard:
                            arena.users += 1
                        taken.arenas.append(arena)
                    taken.runs.append((address, part))
                    blocks -= part
            except BaseException:
                self.settle(taken)
                raise
        if not taken.runs:
            raise NoSpace(f"{self._disk.path} is full", hint="remove volumes or snapshots, or make the device larger")
        return taken

    def settle(self, taken: Taken) -> None:
        """The tables say whose these are; or nobody will ever write them. Does not wait."""
        with self._guard:
            for arena in taken.arenas:
                arena.users -= 1
            self._let_go()

    def trim(self) -> None:
        """Have the device know which blocks are free, in runs of some size: an SSD, or a volume that is thin."""
        least = 4 * _WORTHWHILE
        for start, count in self._catalog.choose_free(lambda free: [*takewhile(lambda run: run[1] >= least, free)]):
            # A part at a time: who looks for free blocks meanwhile is to find some.
            step = min(_TRIMMED, count // 4)
            for at in range(start, start + count, step):
                if not self._trim(at, min(step, start + count - at)):
                    return

    def _trim(self, start: int, count: int) -> bool:
        """The same for some blocks, unless they are in use by now; whether the device wants to know."""
        part = _Arena()
        part.users = 1
        try:
            with self._taking:
                with self._guard:
                    mine = self._held()
                    self._used_up.append(part)

                def hold() -> None:
                    if [*_without((start, count), mine)] == [(start, count)]:
                        part.runs += self._hold((start, count), count)

                self._catalog.if_free(start, count, hold)
            return all(self._disk.trim(*run) for run in part.runs)
        finally:
            with self._guard:
                part.users = 0
                self._let_go()

    def _give_up(self) -> list[Run]:
        """Take no more of what is held; return what has to be held still, until writes have come through."""
        with self._guard:
            arena, self._arena = self._arena, _Arena()
            # What nobody has taken of it need not wait for those who have.
            for run in arena.left:
                self._disk.let_go(*run)
            arena.runs = [part for run in arena.runs for part in _without(run, sorted(arena.left))]
            self._used_up.append(arena)
            self._let_go()
            # What it holds is free as far as the tables know, and would be found again.
            return self._held()

    def _held(self) -> list[Run]:
        return sorted(run for arena in (*self._used_up, self._arena) for run in arena.runs)

    def _let_go(self) -> None:
        for arena in [arena for arena in self._used_up if not arena.users]:
            self._used_up.remove(arena)
            for run in arena.runs:
                self._disk.let_go(*run)

    def _renew(self, blocks: int) -> bool:
        """Hold free blocks, so many or more, if there are any; where there are few, as many as there are."""
        mine = self._give_up()

        def choose(free: Iterator[Run]) -> None:
            # Here, where no transaction can come in between: who holds blocks may be about to have them for good.
            wanted = max(blocks, self._share())
            for run in (part for long in free for part in _without(long, mine)):
                for held in self._hold(run, wanted):
                    self._arena.runs.append(held)
                    wanted -= held[1]
                if wanted <= 0 or len(self._arena.runs) >= _PLACES:
                    break

        self._catalog.choose_free(choose)
        self._arena.left = list(self._arena.runs)
        if self._arena.left and self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="fusevol free blocks", daemon=True)
            self._keeper.start()
        return bool(self._arena.left)

    def _keep(self) -> None:
        """Let go of blocks that nobody takes, or of too many: others may have need of them."""
        seen = -1
        while not self._closing.wait(QUIET):
            with self._taking:
                if self._takes == seen or sum(count for _, count in self._arena.left) > self._share():
                    self._give_up()
                if self._takes == seen:
                    self._keeper = None
                    return
                seen = self._takes

    def _share(self) -> int:
        """How many blocks may be held."""
        return min(_HELD, self._catalog.capacity()[1] // _SHARE)

    def close(self) -> None:
        """Let go of all that nobody is writing to."""
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()

    def _hold(self, run: Run, wanted: int) -> Iterator[Run]:
        """Hold the first blocks of a run that nobody else does, as many as are wanted."""
        at, end = run[0], sum(run)
        while at < end and wanted > 0:
            part = at, min(wanted, end - at)
            conflict = self._disk.hold(*part)
            if conflict and conflict[0] > at:
                # What is before it can be had, as a rule.
                part = at, conflict[0] - at
                conflict = self._disk.hold(*part)
            if conflict:
                at = max(sum(conflict), at + 1)
            else:
                yield part
                at, wanted = sum(part), wanted - part[1]


def _without(run: Run, others: list[Run]) -> Iterator[Run]:
    """The parts of a run that none of the others has; these sorted."""
    at, end = run[0], sum(run)
    for address, count in others:
        if address >= end:
            break
        if address > at:
            yield at, address - at
        at = max(at, address + count)
    if at < end:
        yield at, end - at
