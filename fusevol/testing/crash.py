"""The crash oracle: cut the power anywhere, recover, and see that nothing durable is lost and nothing half-done shows.

    recorded = record(seed)                    # a random workload, with a journal of all it did to the store
    for number in range(40):
        check_cut(recorded, number)            # AssertionError says what is wrong, and how to repeat it

A cut takes a random state that the store may be in after a power cut at a random moment (`Journal.materialise`:
what was not flushed may be lost, torn or reordered) and opens every volume in it. Each must be as at its last
completed barrier, or as at a later one that had begun; likewise its snapshots and clones, and all usage figures.
To read only it must look the same as attached. Some cuts go on with another workload from there, or the beginning
of one, and cut the power again. In the end every volume is used, and every byte accounted for. The writes of every
fourth workload's store, or so, are atomic.

A workload of one's own: run it over a RecordingBackend, note its barriers in `Known.timeline` with positions in
the journal, and put both into a `Recorded`.

`faults` of `record` says what the log is to be deceived about; controls use it to show that the oracle would notice.
`over` is what is between the log and the store, before and after a cut.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from fusevol.backends.base import Backend, Traits
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.recording import Journal, RecordingBackend
from fusevol.errors import CorruptData
from fusevol.log import LogOptions, delete_volume, open_volume
from fusevol.testing.determinism import Dawdling, GoingOn, run
from fusevol.testing.model import VolumeModel
from fusevol.testing.small import random_options, small_batches
from fusevol.testing.timeline import Barrier, Timeline, capture
from fusevol.testing.workload import Known, Workload

__all__ = ["Recorded", "Setting", "check_cut", "record"]

Wrap = Callable[[Backend], Backend]


def _nothing(backend: Backend) -> Backend:
    return backend


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same over all generations of a workload."""

    seed: object
    options: LogOptions
    batch_blocks: int | None
    traits: Traits
    faults: Wrap
    over: Wrap

    def batches(self) -> AbstractContextManager[None]:
        """While inside, batches are as small as they are to be."""
        return small_batches(self.batch_blocks) if self.batch_blocks else nullcontext()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A workload that was run: its journal, and the volumes with their timelines."""

    setting: Setting
    journal: Journal
    volumes: dict[str, Known]

    def positions(self) -> list[int]:
        """Where barriers returned, and where manifests were put: cuts near those are the ones to fear."""
        found = {call.end for call in self.journal.calls("put_manifest") if call.end is not None}
        for known in self.volumes.values():
            found |= {barrier.ended for barrier in known.timeline.barriers if barrier.ended is not None}
        return sorted(found)

    def cut(self, choose: random.Random) -> int:
        """A random position in the journal."""
        if (feared := self.positions()) and choose.random() < 0.5:
            return min(len(self.journal), max(0, choose.choice(feared) + choose.choice((-2, -1, 0, 0, 1, 2, 3))))
        return choose.randint(0, len(self.journal))


def record(seed: object, steps: int = 60, *, faults: Wrap = _nothing, over: Wrap = _nothing) -> Recorded:
    """Run a random workload on an empty store. Raises AssertionError where that alone goes wrong."""
    choose = random.Random(f"{seed}")
    options, batch_blocks = random_options(choose), choose.choice((5, 20, None))
    traits = Traits(durable=False, atomic_writes=choose.random() < 0.25)
    setting = Setting(seed, options, batch_blocks, traits, faults, over)
    with _explained(lambda: f"seed {seed}, before any cut"):
        return _record(setting, MemoryBackend(), {}, steps, f"{seed}")


def _record(setting: Setting, store: MemoryBackend, volumes: dict[str, Known], steps: int, seed: str) -> Recorded:
    store.traits = setting.traits
    recording = RecordingBackend(Dawdling(store, seed))
    backend = GoingOn(setting.over(setting.faults(recording)), seed)
    workload = Workload(
        backend, seed, options=setting.options, clock=lambda: len(recording.journal), check_every=0, volumes=volumes
    )
    with setting.batches():
        run(workload.run, steps, seed=seed)
    return Recorded(setting, recording.journal, workload.volumes)


def check_cut(recorded: Recorded, number: int) -> int:
    """Cut the power, recover, compare; `number` decides where and how. Returns how many cuts in a row it was.

    Raises AssertionError.
    """
    setting = recorded.setting
    seed = f"{setting.seed}:{number}"
    choose = random.Random(seed)
    more = choose.choice((0, 0, 0, 1, 1, 2))
    trace: list[str] = []
    with _explained(lambda: f"seed {setting.seed}, cut {number} (at {', '.join(trace)})"):
        for generation in range(more + 1):
            cut = recorded.cut(choose)
            trace.append(f"{cut}/{len(recorded.journal)}")
            store = recorded.journal.materialise(cut, choose)
            store.traits = setting.traits
            with setting.batches():
                volumes = run(_recover, setting.over(store), recorded, cut, seed=seed)
            if generation < more:
                steps = choose.choice((0, 1, 2, 12))
                recorded = _record(setting, store, volumes, steps, f"{seed}:{generation}")
        workload = Workload(setting.over(store), seed, options=setting.options, volumes=volumes)
        with setting.batches():
            run(workload.settle, seed=seed)
    return more + 1


@contextmanager
def _explained(where: Callable[[], str]) -> Iterator[None]:
    """Turn what is raised inside into an AssertionError that says where and why."""
    try:
        yield
    except Exception as error:
        reasons = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in _leaves(error))
        raise AssertionError(f"{where()}: {reasons}") from error


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


async def _recover(store: Backend, recorded: Recorded, cut: int) -> dict[str, Known]:
    """What is there after a cut, to go on from. Raises AssertionError where it is not what it may be."""
    there = set(await store.list())
    volumes: dict[str, Known] = {}
    doubtful: list[str] = []
    for volume_id, known in recorded.volumes.items():
        assert known.begun < cut or volume_id not in there, f"{volume_id} is there before it was made"
        if known.deleted is not None and known.deleted <= cut:
            assert volume_id not in there, f"{volume_id} was deleted, and is there"
        elif (known.deleting is not None and known.deleting < cut) or known.made is None or known.made > cut:
            if volume_id in there:
                doubtful.append(volume_id)
        else:
            assert volume_id in there, f"{volume_id} is gone"
            volumes[volume_id] = await _look(store, known, recorded.setting.options, cut)
    # Deleted last to first, as clones are younger than what they are clones of.
    for volume_id in reversed(doubtful):
        known = recorded.volumes[volume_id]
        try:
            found = await _look(store, known, recorded.setting.options, cut)
        except CorruptData:
            await delete_volume(store, volume_id)
            continue
        if known.deleting is None and found.model.live:
            volumes[volume_id] = found
        else:
            await delete_volume(store, volume_id)
    return volumes


async def _look(store: Backend, known: Known, options: LogOptions, cut: int) -> Known:
    """Open a volume to read only, and take what it shows, if it may be that, as what it must be from now on."""
    async with open_volume(store, known.model.volume_id, read_only=True, options=options) as volume:
        image = await capture(volume)
    state = known.timeline.find(image, cut)
    found = Known(VolumeModel(known.model.volume_id, dict(state.live), state.snapshots), -1, origin=known.origin)
    found.timeline = Timeline(known.model.volume_id, [Barrier(state, -1, -1)])
    found.made = -1
    return found
