"""What two volumes have in common, and the way from there to a snapshot of one of them.

A snapshot is known again wherever it was copied to: its copies carry what it was known by where it was taken. So what
two volumes have in common is seen from their snapshots alone, in either direction, over any number of copies.
"""

from typing import TYPE_CHECKING

from fusevol.api import Volume
from fusevol.driver.snapshots import CLONE_LABEL, COPY_LABEL, ORIGIN_LABEL, snapshot_id
from fusevol.errors import AlreadyExists, SnapshotNotFound

if TYPE_CHECKING:
    from fusevol.log import LogVolume, Snapshot

__all__ = ["Lineage", "labels_of_copy"]


def _origin(volume: Volume, snapshot: "Snapshot") -> str:
    """What a snapshot is known by wherever it was copied to."""
    # The time tells apart those of volumes that were copied with their ids, by other means than ours.
    return snapshot.labels.get(ORIGIN_LABEL) or f"{snapshot_id(volume, snapshot)}:{snapshot.created}"


def labels_of_copy(snapshot: "Snapshot", origin: str, target: Volume) -> dict[str, str]:
    """The labels of a copy. That a snapshot was taken for another volume than this one says nothing here."""
    others = {CLONE_LABEL} | ({COPY_LABEL} if snapshot.labels.get(COPY_LABEL) != target.id else set())
    return {**{key: value for key, value in snapshot.labels.items() if key not in others}, ORIGIN_LABEL: origin}


class Lineage:
    """Of a volume that is open, `source`, and of one that is to be its copy, `log`.

    theirs, ours: the snapshots of the two, by what they are known by everywhere. common: the one that both have, and
    that the copy can be brought on from, since its live tree is that, or began as that; None where it begins empty.
    """

    def __init__(self, volume: Volume, source: "LogVolume", target: Volume, log: "LogVolume") -> None:
        self._volume = volume
        self._target = target
        self._log = log
        self.theirs = {_origin(volume, snapshot): snapshot for snapshot in source.snapshots()}
        self.ours = {_origin(target, snapshot): snapshot for snapshot in log.snapshots()}
        both = [origin for origin in self.ours if origin in self.theirs]
        began = log.becoming.partition(">")[0]
        same = next((origin for origin in reversed(both) if log.unchanged_since(self.ours[origin])), None)
        self.common = same or (began if began in both else next(reversed(both), None))
        #: Whether the live tree of the copy is what both have in common, and nothing else.
        self.clean = bool(same) if self.common else not log.path.live.mapped

    def find(self, snapshot: Volume) -> str:
        """What a snapshot of the source is known by. Raises SnapshotNotFound."""
        for origin, found in self.theirs.items():
            if snapshot_id(self._volume, found) == snapshot.id:
                return origin
        raise SnapshotNotFound(f'snapshot "{snapshot.locator.name}" was deleted before it was copied')

    def becoming(self, origin: str) -> str:
        """What the log of the copy is to say while it becomes that snapshot."""
        return f"{self.common or ''}>{origin}"

    def steps(self, wanted: str, *, only: bool) -> list[str]:
        """The snapshots to be copied, in this order: first the one of which a part is there, if there is such a one.

        only: of the others, the wanted one alone.
        """
        begun = [] if self.clean else [origin for origin in self.theirs if self._log.becoming == self.becoming(origin)]
        there = {*self.ours, *begun}
        if wanted in there:
            return begun
        last = (*begun, self.common)[0]
        after = self.theirs[last].id if last else 0
        before = [
            origin
            for origin, snapshot in self.theirs.items()
            if after < snapshot.id < self.theirs[wanted].id
            and origin not in there
            # Those that were taken for something else than to be kept.
            and not {CLONE_LABEL, COPY_LABEL} & snapshot.labels.keys()
        ]
        return [*begun, *([] if only else before), wanted]

    def check(self, steps: list[str]) -> None:
        """Raise AlreadyExists where the copy is something else, or would have two snapshots of one name."""
        name, source = self._target.locator.name, self._volume.locator.name
        names = {snapshot.name for snapshot in self.ours.values()}
        if taken := [self.theirs[origin].name for origin in steps if self.theirs[origin].name in names]:
            raise AlreadyExists(
                f'volume "{name}" has a snapshot "{taken[0]}" that is not the one of volume "{source}"',
                hint=f"delete it, or copy to a new volume: fusevol rm {name}@{taken[0]}",
            )
        if self.common is None and self.ours:
            raise AlreadyExists(
                f'volume "{name}" exists, and has no snapshot in common with volume "{source}"',
                hint="copy to a new volume",
            )
        if self.clean or self._log.becoming:
            return
        if self.common is None:
            raise AlreadyExists(f'volume "{name}" exists, and has been written to', hint="copy to a new volume")
        ours = self.ours[self.common].name
        raise AlreadyExists(
            f'volume "{name}" has been written to since it was a copy of "{source}@{self.theirs[self.common].name}"',
            hint=f"to give that up: fusevol restore {name}@{ours}; or copy to a new volume",
        )

    async def go_back(self) -> None:
        """Have the live tree of the copy as what both have in common: it is on the way to something else."""
        if self.common is None:
            await self._log.discard(1 << 63, 0)
            await self._log.flush()
        else:
            # What goes is labelled as what was left by other attempts is.
            labels = {COPY_LABEL: self._target.id}
            safety = await self._log.restore(self.ours[self.common].name, labels=labels)
            await self._log.delete_snapshot(safety.name)
        self.clean = True
