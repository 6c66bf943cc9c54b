"""What two volumes have in common, and the way from there to a snapshot of one of them.

A snapshot is known again wherever it was copied to: its copies carry what it was known by where it was taken. So what
two volumes have in common is seen from their snapshots alone, in either direction, over any number of copies.
"""

from typing import TYPE_CHECKING

from fusevol.api import Volume
from fusevol.driver.labels import RESERVED_LABELS
from fusevol.driver.snapshots import CLONE_LABEL, COPY_LABEL, HALF_LABEL, ORIGIN_LABEL, copy_label, go_back, snapshot_id
from fusevol.errors import AlreadyExists, SnapshotNotFound

if TYPE_CHECKING:
    from fusevol.log import LogVolume, Snapshot

__all__ = ["Lineage", "labels_of_copy"]


def _origin(volume: Volume, snapshot: "Snapshot") -> str:
    """What a snapshot is known by wherever it was copied to."""
    # The time tells apart those of volumes that were copied with their ids, by other means than ours.
    return snapshot.labels.get(ORIGIN_LABEL) or f"{snapshot_id(volume, snapshot)}:{snapshot.created}"


def labels_of_copy(snapshot: "Snapshot", origin: str) -> dict[str, str]:
    """The labels of a copy. That a snapshot was taken for a clone says nothing elsewhere."""
    return {**{key: value for key, value in snapshot.labels.items() if key != CLONE_LABEL}, ORIGIN_LABEL: origin}


class Lineage:
    """Of a volume that is open, `source`, and of one, `log`, that is to hold its snapshot `goal`.

    theirs, ours: the snapshots of the two, by what they are known by everywhere; wanted: the goal, likewise. common:
    the one that both have, and that the copy is brought on from: the wanted one, or what its live tree is, or began as;
    None where it begins empty. clean: whether its live tree is that, and nothing else.
    """

    def __init__(self, volume: Volume, source: "LogVolume", goal: Volume, target: Volume, log: "LogVolume") -> None:
        """Raises SnapshotNotFound where the goal is gone."""
        self._volume = volume
        self._target = target
        self._log = log
        self.theirs = {_origin(volume, snapshot): snapshot for snapshot in source.snapshots()}
        self.ours = {_origin(target, snapshot): snapshot for snapshot in log.snapshots()}
        both = [origin for origin in self.ours if origin in self.theirs]
        began = log.becoming.partition(">")[0]
        same = next((origin for origin in reversed(both) if log.unchanged_since(self.ours[origin])), None)
        self.wanted = self._find(goal)
        self.common: str | None = self.wanted
        if self.wanted not in self.ours:
            self.common = same or (began if began in both else next(reversed(both), None))
        self.clean = log.unchanged_since(self.ours[self.common]) if self.common else not log.path.live.mapped

    def _find(self, goal: Volume) -> str:
        for origin, found in self.theirs.items():
            if snapshot_id(self._volume, found) == goal.id:
                return origin
        raise SnapshotNotFound(f'snapshot "{goal.locator.name}" was deleted before it was copied')

    def becoming(self, origin: str) -> str:
        """What the log of the copy is to say while it becomes that snapshot."""
        return f"{self.common or ''}>{origin}"

    def is_nothing_new(self, steps: list[str]) -> bool:
        """Whether all there is to be copied is a snapshot of what the copy holds already."""
        if not self.clean or self.common is None or len(steps) != 1:
            return False
        return self.theirs[self.common].root == self.theirs[steps[0]].root

    def steps(self, *, only: bool) -> list[str]:
        """The snapshots to be copied, in this order: first the one of which a part is there, if there is such a one.

        only: the wanted one alone.
        """
        if self.wanted in self.ours:
            return []
        begun = [] if self.clean else [origin for origin in self.theirs if self._log.becoming == self.becoming(origin)]
        if only or self.wanted in begun:
            return [self.wanted]
        last = (*begun, self.common)[0]
        after = self.theirs[last].id if last else 0
        before = [
            origin
            for origin, snapshot in self.theirs.items()
            if after < snapshot.id < self.theirs[self.wanted].id and origin not in self.ours and self._is_kept(snapshot)
        ]
        return [*begun, *before, self.wanted]

    def _is_kept(self, snapshot: "Snapshot") -> bool:
        """Whether a snapshot is for more than a clone, or for copies between others than this source and others."""
        if snapshot.labels.keys() & {CLONE_LABEL, HALF_LABEL}:
            return False
        label = snapshot.labels.get(COPY_LABEL, "")
        # Those for copies to others: with them, what is copied can take the place of the source.
        return not label or (label.startswith(copy_label(self._volume.id, "")) and not self.is_paired(snapshot))

    def is_paired(self, snapshot: "Snapshot") -> bool:
        """Whether a snapshot was taken to be copied from the one of these volumes to the other."""
        ids = self._volume.id, self._target.id
        return snapshot.labels.get(COPY_LABEL) in (copy_label(*ids), copy_label(*reversed(ids)))

    def is_left(self, snapshot: "Snapshot") -> bool:
        """Whether a snapshot of the copy was taken for copies of the source to others, and is there no more."""
        label, origin = snapshot.labels.get(COPY_LABEL, ""), snapshot.labels.get(ORIGIN_LABEL)
        own = label.startswith(copy_label(self._volume.id, "")) and not self.is_paired(snapshot)
        return own and origin is not None and origin not in self.theirs

    def check(self, steps: list[str]) -> None:
        """Raise AlreadyExists where the copy holds something else, or would have two snapshots of one name."""
        name, source = self._target.locator.name, self._volume.locator.name
        names = {snapshot.name for snapshot in self.ours.values() if HALF_LABEL not in snapshot.labels}
        if taken := [self.theirs[origin].name for origin in steps if self.theirs[origin].name in names]:
            raise AlreadyExists(
                f'volume "{name}" has a snapshot "{taken[0]}" that is not the one of volume "{source}"',
                hint=f"delete it, or copy to a new volume: fusevol rm {name}@{taken[0]}",
            )
        if self.common is None and self.ours:
            raise AlreadyExists(
                f'volume "{name}" exists, and has no snapshot in common with volume "{source}" any more',
                hint=f"copy to a new volume; or first delete that one: fusevol rm --snapshots {name}",
            )
        if self.clean or self._log.becoming or self._is_kept_here():
            return
        if self.common is None:
            raise AlreadyExists(f'volume "{name}" exists, and has been written to', hint="copy to a new volume")
        ours = self.ours[self.common].name
        raise AlreadyExists(
            f'volume "{name}" has been written to since it was a copy of "{source}@{self.theirs[self.common].name}"',
            hint=f"to give that up: fusevol restore {name}@{ours}; or copy to a new volume",
        )

    def _is_kept_here(self) -> bool:
        """Whether the copy holds what it was given, or what its user keeps: not what the driver takes, and deletes."""
        return any(
            self._log.unchanged_since(snapshot)
            for snapshot in self.ours.values()
            if ORIGIN_LABEL in snapshot.labels or not any(key.startswith(RESERVED_LABELS) for key in snapshot.labels)
        )

    async def go_back(self) -> None:
        """Have the live tree of the copy as what both have in common. What it is now is not wanted, or kept."""
        await go_back(self._log, self.ours[self.common].name if self.common else None)
        self.clean = True
