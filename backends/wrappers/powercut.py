"""What a power cut leaves of a store: the rules behind `Journal.materialise`.

Bytes:

- A write is *covered* by a flush that returned before the cut and began after the write had returned.
  Covered writes are there, as far as they were acknowledged (a short write: its first part).
- After a flush that failed, the writes begun before its end are not covered by that flush nor by any
  later one: IODriver promises nothing for them.
- Every other write that began before the cut, failed and cancelled ones included, is there, not there,
  or torn: an arbitrary subset of its 512-byte sectors is there. Not torn where writes are atomic.
- Discards follow the same rules. What is discarded reads as zeros.
- Of two calls on the same bytes, one that began after the other had returned comes later; calls that
  overlapped in time come in either order. (A call that returned, even with an error, is over: it has no
  effect later on.)
- The space may end as if a torn write were whole: sizes reach the disk apart from data.

Volumes and manifests, whose calls are durable on return:

- `create`, `delete` and `put_manifest` that returned before the cut happened. One that was under way, or
  failed with an unknown outcome, may have happened or not; errors that say "nothing was changed" are
  believed, and so is what a later `get_manifest` showed.
- A `delete` that was under way and did not finish may have taken any part of the volume's contents.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fusevol.backends.base import NO_VERSION, Manifest
from fusevol.backends.memory import MemoryBackend, Space, new_version
from fusevol.errors import AlreadyExists, InvalidArgument, ManifestConflict, VolumeNotFound

__all__ = ["SECTOR", "Call", "survivors"]

#: What a disk writes whole or not at all.
SECTOR = 512

#: Errors after which it is certain that nothing was changed.
_NO_EFFECT = (AlreadyExists, InvalidArgument, ManifestConflict, VolumeNotFound)

#: How likely an uncovered call is to have had its effect. Drawn once per state, so that among many
#: states there are some where nothing, and some where everything survived.
_MOODS = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(slots=True, eq=False)
class Call:
    """A call as recorded. `begin` and `end` are positions in the journal; `end` is None while under way."""

    kind: str
    volume_id: str
    begin: int
    offset: int = 0
    length: int = 0
    data: bytes | None = None
    if_version: str = ""
    end: int | None = None
    error: BaseException | None = None
    #: write: what it returned.
    written: int | None = None
    #: get_manifest: what it returned; put_manifest: what it made.
    manifest: Manifest | None = None

    def ended(self, cut: int) -> bool:
        """Whether the call had returned or raised before the cut."""
        return self.end is not None and self.end < cut

    def succeeded(self, cut: int) -> bool:
        """Whether the call had returned before the cut."""
        return self.ended(cut) and self.error is None

    def unknown(self, cut: int) -> bool:
        """Whether it is open if the call had its effect before the cut."""
        if self.begin >= cut:
            return False
        return not self.ended(cut) or (self.error is not None and not isinstance(self.error, _NO_EFFECT))

    def position(self, cut: int) -> int:
        """Where the call ended, or the cut if it had not."""
        return self.end if self.end is not None and self.end < cut else cut


def survivors(
    calls: Sequence[Call], cut: int, choose: random.Random, base: MemoryBackend, *, atomic_writes: bool
) -> MemoryBackend:
    """One state that a power cut at `cut` could leave of `base` and the calls made on it."""
    result = MemoryBackend()
    by_volume: dict[str, list[Call]] = {volume_id: [] for volume_id in base.spaces}
    for call in calls:
        if call.begin < cut and call.volume_id:
            by_volume.setdefault(call.volume_id, []).append(call)
    for volume_id, own in sorted(by_volume.items()):
        space = _volume(own, cut, choose, base.spaces.get(volume_id), atomic_writes=atomic_writes)
        if space is not None:
            result.spaces[volume_id] = space
    return result


def _volume(
    calls: Sequence[Call], cut: int, choose: random.Random, space: Space | None, *, atomic_writes: bool
) -> Space | None:
    """What is left of one volume that was `space` before `calls`; None if it is gone."""
    space = None if space is None else space.copy()
    born = -1  # where the present incarnation began; earlier calls were on another one
    lifecycle = [
        call for call in calls if call.kind in ("create", "delete") and (call.succeeded(cut) or call.unknown(cut))
    ]
    # Those that may have happened are judged when it is known whether the volume was there at the end.
    for call in sorted(lifecycle, key=lambda call: call.position(cut)):
        if call.succeeded(cut):
            space, born = (Space(), call.begin) if call.kind == "create" else (None, call.position(cut))
        elif call.kind == "create" and space is None:
            seen = _seen(calls, call.position(cut), cut)
            if seen or (seen is None and choose.random() < 0.5):
                space, born = Space(), call.begin
        elif call.kind == "delete" and space is not None:
            seen = _seen(calls, call.position(cut), cut)
            fate = choose.choice(("untouched", "gutted", "bare") if seen else ("untouched", "gutted", "bare", "gone"))
            if fate == "gone" or seen is False:
                space, born = None, call.position(cut)
            elif fate != "untouched":
                _contents(space, calls, born, cut, choose, atomic_writes=atomic_writes)
                space.discard(space.end, 0)
                if fate == "bare":
                    space.manifest = Manifest(b"", NO_VERSION)
                return space
    if space is not None:
        _contents(space, calls, born, cut, choose, atomic_writes=atomic_writes)
    return space


def _seen(calls: Iterable[Call], after: int, cut: int) -> bool | None:
    """Whether the volume was there after `after`, as far as later calls showed; None: they did not."""
    for call in calls:
        if call.begin <= after or not call.ended(cut) or call.kind == "read_nowait":
            continue
        if call.error is None:
            return call.kind != "create"
        if isinstance(call.error, VolumeNotFound | AlreadyExists):
            return isinstance(call.error, AlreadyExists)
    return None


def _contents(
    space: Space, calls: Sequence[Call], born: int, cut: int, choose: random.Random, *, atomic_writes: bool
) -> None:
    """Let happen to `space` what must and may have happened to its bytes and its manifest."""
    calls = [call for call in calls if call.begin >= born]
    space.manifest = _manifest(calls, cut, choose, space.manifest)
    changes = [
        call for call in calls if call.kind in ("write", "discard") and (call.succeeded(cut) or call.unknown(cut))
    ]
    covered = _covered(calls, cut)
    mood = choose.choice(_MOODS)
    # A random moment within each call's duration: an order that agrees with "returned before it began".
    moments = {call: choose.uniform(call.begin, call.position(cut)) for call in changes}
    for call in sorted(changes, key=lambda call: moments[call]):
        if call in covered or choose.random() < mood:
            torn = call not in covered and not atomic_writes and choose.random() < 0.5
            _apply(space, call, cut, choose if torn else None)


def _covered(calls: Sequence[Call], cut: int) -> set[Call]:
    """The writes and discards that certainly reached stable storage before the cut."""
    flushes = [call for call in calls if call.kind == "flush"]
    good = [call for call in flushes if call.succeeded(cut)]
    bad = [call for call in flushes if call.ended(cut) and isinstance(call.error, Exception)]
    # Calls stand in the order of their begins. For each flush: the earliest end from there on.
    begins = [flush.begin for flush in good]
    ends = list(accumulate((flush.position(cut) for flush in reversed(good)), min))[::-1]
    covered = set()
    for call in calls:
        if call.kind not in ("write", "discard") or not call.succeeded(cut):
            continue
        # The earliest flush that covers it decides: later ones add nothing, and can take nothing away.
        first = bisect_right(begins, call.position(cut))
        if first < len(good) and not any(
            failed.begin < ends[first] and failed.position(cut) > call.begin for failed in bad
        ):
            covered.add(call)
    return covered


def _apply(space: Space, call: Call, cut: int, tear: random.Random | None) -> None:
    """Do a write or discard to `space`, whole or, with `tear`, some of its sectors."""
    data = call.data
    if data is not None and call.succeeded(cut):
        data = data[: call.written]
    length = call.length if data is None else len(data)
    ranges = [(call.offset, length)]
    if tear is not None and data is None:  # a discard may be vast; where nothing is, there is nothing to lose
        ranges = space.occupied(length, call.offset)
    for offset, size in ranges:
        for start, stop in [(offset, offset + size)] if tear is None else _some_sectors(offset, size, tear):
            if data is None:
                space.discard(stop - start, start)
            else:
                space.write(memoryview(data)[start - offset : stop - offset], start)
    if tear is not None and length and data is not None and tear.random() < 0.5:
        space.end = max(space.end, call.offset + length)


def _some_sectors(offset: int, length: int, tear: random.Random) -> Iterable[tuple[int, int]]:
    """A random subset of the sectors in a range: where each begins and ends."""
    density, start, end = tear.random(), offset, offset + length
    while start < end:
        stop = min(end, start + SECTOR - start % SECTOR)
        if tear.random() < density:
            yield start, stop
        start = stop


def _manifest(calls: Sequence[Call], cut: int, choose: random.Random, first: Manifest) -> Manifest:
    """The manifest that is certain, or one that an undecided put may have made of it."""
    puts = [call for call in calls if call.kind == "put_manifest"]
    gets = [call for call in calls if call.kind == "get_manifest" and call.succeeded(cut)]
    known = [call for call in puts if call.succeeded(cut)]
    versions = {call.manifest.version for call in known if call.manifest} | {first.version}
    # A version that no put returned was made by a put with an unknown outcome; seeing it settles that.
    known += [call for call in gets if call.manifest and call.manifest.version not in versions]
    replaced = {call.if_version for call in puts if call.succeeded(cut)}
    latest = max(
        (call for call in known if call.manifest and call.manifest.version not in replaced),
        key=lambda call: call.position(cut),
        default=None,
    )
    certain = first if latest is None or latest.manifest is None else latest.manifest
    undecided = [
        put
        for put in puts
        if put.unknown(cut)
        and put.if_version == certain.version
        and not any(
            get.begin > put.position(cut) and get.manifest and get.manifest.version == certain.version for get in gets
        )
    ]
    if undecided and choose.random() < 0.5:
        return Manifest(choose.choice(undecided).data or b"", new_version())
    return certain
