"""Which states a volume may be in after a cut, and finding the one that it is in.

A timeline has the barriers of one volume in the order in which they began. After a cut the volume must be as
at the last barrier that had returned before it, or at a later one that had begun.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fusevol.backends.base import Backend
from fusevol.log import LogVolume
from fusevol.testing.model import BLOCK, ZONES, Held, State, Tree, VolumeModel, difference

__all__ = ["AUTO", "Barrier", "Image", "Timeline", "capture", "verify", "verify_space"]

#: Stands for the safety snapshot of a restore that has not returned its name yet.
AUTO = "?"

Zones = tuple[bytes, ...]


class Image(NamedTuple):
    """Everything that can be seen of a volume: its zones, those of each snapshot, and who holds how much."""

    live: Zones
    snapshots: Mapping[str, Zones]
    auto: frozenset[str]
    held: Held


async def capture(volume: LogVolume) -> Image:
    """Read a volume and all its snapshots, and what they hold."""
    live = tuple([bytes(await volume.read(count * BLOCK, start * BLOCK)) for start, count in ZONES])
    snapshots = {}
    for record in volume.snapshots():
        async with volume.view(record.name) as view:
            snapshots[record.name] = tuple(
                [bytes(await view.read(count * BLOCK, start * BLOCK)) for start, count in ZONES]
            )
    usage = await volume.usage()
    held = Held(*(size // BLOCK for size in (usage.live, usage.inherited, usage.data, usage.snapshots)))
    return Image(live, snapshots, frozenset(record.name for record in volume.snapshots() if record.auto), held)


@dataclass(slots=True, eq=False)
class Barrier:
    """A state, and the positions at which making it durable began and returned (None: it did not)."""

    state: State
    begun: int
    ended: int | None = None

    def done(self, cut: int) -> bool:
        """Whether it had returned before the cut."""
        return self.ended is not None and self.ended <= cut


@dataclass(slots=True)
class Timeline:
    """The barriers of one volume."""

    volume_id: str
    barriers: list[Barrier] = field(default_factory=list)

    def begin(self, position: int, *states: State) -> list[Barrier]:
        """Note that an operation began that makes these states durable, one after the other."""
        begun = [Barrier(state, position) for state in states]
        self.barriers += begun
        return begun

    def candidates(self, cut: int, until: int | None = None) -> list[State]:
        """The states that the volume may be in after a cut, the last first.

        until: where who looked had finished, if that took a while and others went on meanwhile.
        """
        done = [i for i, barrier in enumerate(self.barriers) if barrier.done(cut)]
        later = self.barriers[done[-1] if done else 0 :]
        last = cut if until is None else until
        return [barrier.state for barrier in reversed(later) if barrier.done(cut) or barrier.begun < last]

    def find(self, image: Image, cut: int, until: int | None = None) -> State:
        """The one of them that `image` shows, safety snapshots named. AssertionError if it shows none."""
        candidates = self.candidates(cut, until)
        reasons: list[str] = []
        for state in candidates:
            named = _named(state, image)
            reason = self._difference(named, image)
            if reason is None:
                return named
            reasons.append(reason)
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise AssertionError(f"the volume is in none of the {len(candidates)} states it may be in:\n{listed}")

    def _difference(self, state: State, image: Image) -> str | None:
        if set(state.snapshots) != set(image.snapshots):
            return f"snapshots {sorted(image.snapshots)} instead of {sorted(state.snapshots)}"
        trees: Iterable[tuple[str, Tree, Zones]] = [
            ("the live volume", state.live, image.live),
            *((f"snapshot {name}", tree, image.snapshots[name]) for name, tree in state.snapshots.items()),
        ]
        for what, tree, zones in trees:
            for (start, _), found in zip(ZONES, zones, strict=True):
                if reason := difference(tree, found, start):
                    return f"{what}: {reason}"
        held = VolumeModel(self.volume_id, dict(state.live), state.snapshots).held()
        return f"it holds {image.held} blocks, not {held}" if held != image.held else None


def _named(state: State, image: Image) -> State:
    """With the safety snapshot under the name that it has in the image, where there is just one it can be."""
    unknown = [name for name in image.auto if name not in state.snapshots]
    if AUTO not in state.snapshots or len(unknown) != 1:
        return state
    return replace(
        state, snapshots={unknown[0] if name == AUTO else name: tree for name, tree in state.snapshots.items()}
    )


async def verify(volume: LogVolume, model: VolumeModel) -> None:
    """The volume and all snapshots read as they should, and hold what the model counts."""
    Timeline(model.volume_id, [Barrier(model.state(), 0, 0)]).find(await capture(volume), 1)
    for name in model.snapshots:
        counted = await volume.snapshot_usage(name)
        wanted = len(model.snapshots[name]), model.exclusive(name)
        assert (counted.referenced / BLOCK, counted.exclusive / BLOCK) == wanted, f"{name}: {counted}, not {wanted}"


async def verify_space(backend: Backend, volume: LogVolume) -> None:
    """Reclaim, and usage accounts for every byte of the store."""
    await volume.reclaim()
    usage, used = await volume.usage(), await backend.used_size(volume.volume_id)
    assert usage.total == used, f"{usage} has {usage.total} in all, and the space holds {used}"
