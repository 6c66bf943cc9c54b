"""Damage of every kind, in a volume with a clone, closed or left: an error that names the volume, or the right data.

Where the last flush has no witness, the barrier before it will do (docs/format.md, "Rolling forward"). The quick
tests take samples; with FUSEVOL_FULL=1 (scripts/fault_soak) every single bit of everything stored is flipped.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import trio
from xxhash import xxh3_64_intdigest

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Manifest
from fusevol.backends.memory import MemoryBackend, new_version
from fusevol.errors import CorruptData, FusevolError, NotSupported
from fusevol.log import (
    LogOptions,
    LogVolume,
    SnapshotView,
    clone_volume,
    create_volume,
    delete_volume,
    open_volume,
    records,
)
from fusevol.log.batch import BatchHeader
from fusevol.log.format import BLOCK
from tests.unit.volumes import QUIET, Content, State, block_bytes, read_all

FULL = bool(os.environ.get("FUSEVOL_FULL"))
BLOCKS = range(1021, 1027)


@dataclass(slots=True)
class Case:
    """Stored volumes, and what they hold.

    states: by volume id, the barriers it was at; the first is the one it was left in. log: the batches of v
    behind its checkpoint, as ranges of bytes; the first brings the last but one of the states, and so on.
    """

    backend: MemoryBackend
    states: dict[str, list[State]]
    log: list[range] = field(default_factory=list)
    blocks: range = BLOCKS

    def allowed(self, volume_id: str, damaged: Iterable[int]) -> list[int]:
        """What v may be found as with these blocks damaged: as it was left, or the log cut short.

        It may be cut in front of a damaged batch whose successors have no intact header: no witness is left.
        """
        offsets = {offset // BLOCK * BLOCK for offset in damaged} if volume_id == "v" else set()
        found = [0]
        for number, batch in reversed(list(enumerate(self.log))):
            if any(offset in batch for offset in offsets):
                found.append(len(self.states["v"]) - number - 1)
            if batch.start not in offsets:
                break
        return [state for state in found if state >= 0]

    def copy(self) -> MemoryBackend:
        twin = MemoryBackend()
        twin.spaces = {volume_id: space.copy() for volume_id, space in self.backend.spaces.items()}
        return twin


async def small(*, close: bool, mark: bool = False) -> Case:
    """A few blocks in two leaves, a snapshot, a clone with a block of its own, and a little log behind it all."""
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET) as volume:
        for block in BLOCKS:
            await volume.write(block_bytes(block), block * BLOCK)
        await volume.snapshot("s")
    await clone_volume(backend, "v", "s", "c")
    snapshot = {block: block_bytes(block) for block in BLOCKS}
    async with open_volume(backend, "c", options=QUIET) as clone:
        await clone.write(block_bytes("c"), 1022 * BLOCK)
    options = LogOptions(idle_seconds=0) if mark else QUIET
    async with open_volume(backend, "v", options=options) as volume:
        await volume.write(block_bytes("one"), 1023 * BLOCK)
        await volume.discard(BLOCK, 1025 * BLOCK)
        await volume.flush()
        earlier = {**snapshot, 1023: block_bytes("one")}
        del earlier[1025]
        await volume.write(block_bytes("two"), 1021 * BLOCK)
        await volume.write(block_bytes("three"), 1026 * BLOCK)
        await volume.flush()
        live = {**earlier, 1021: block_bytes("two"), 1026: block_bytes("three")}
        await marked(volume, mark)
        if not close:
            volume.abandon()
    states: list[State] = [(live, {"s": snapshot}), (earlier, {"s": snapshot}), (snapshot, {"s": snapshot})]
    log = log_behind_checkpoint(backend)
    assert len(log) == (0 if close else 3 if mark else 2)
    case = Case(backend, {"v": states, "c": [({**snapshot, 1022: block_bytes("c")}, {})]}, log)
    assert await examine(case, case.copy(), [0]) == (0, 0)
    return case


async def marked(volume: LogVolume, wanted: bool) -> None:
    """Wait until the mark is stored."""
    log = volume._log
    assert log is not None
    with trio.fail_after(5):
        while wanted and (log.sequence == log.last_data or log._sealed):
            await trio.lowlevel.checkpoint()


def log_behind_checkpoint(backend: MemoryBackend) -> list[range]:
    """The batches of v behind the record of its checkpoint."""
    manifest = records.Manifest.from_bytes(backend.spaces["v"].manifest.data, "v")
    found = []
    for offset in stored(backend, "v"):
        header = BatchHeader.parse(backend.read_nowait("v", BLOCK, offset), bytes.fromhex(manifest.uuid))
        if header and manifest.checkpoint and header.address > manifest.checkpoint.address:
            found.append(range(offset, offset + header.total * BLOCK))
    return found


async def examine(
    case: Case, backend: MemoryBackend, allowed: Sequence[int], *, attach: bool = True
) -> tuple[int, int]:
    """Open and read everything; return how many errors there were, and which of the states v was found as."""
    errors = 0
    found = -1
    for volume_id, states in case.states.items():
        candidates = [states[i] for i in (allowed if volume_id == "v" else (0,))]
        try:
            with trio.fail_after(10):
                async with open_volume(backend, volume_id, options=QUIET, read_only=not attach) as volume:
                    left, told = await compare(case, volume, candidates)
                    errors += told
                    if volume_id == "v":
                        found = states.index(left)
        except FusevolError as error:
            errors += 1
            check_name(error)
    return errors, found


def check_name(error: FusevolError) -> None:
    assert '"v"' in str(error) or '"c"' in str(error), f"names no volume: {error!r}"


async def compare(case: Case, volume: LogVolume, candidates: list[State]) -> tuple[State, int]:
    """Every block of everything is one candidate's, or an error; return the candidate, and the number of errors."""
    try:
        found = await read_all(volume, case.blocks)
    except CorruptData:
        pass
    else:
        assert found in candidates, "wrong data"
        return found, 0
    names = {snapshot.name for snapshot in volume.snapshots()}
    left = [state for state in candidates if set(state[1]) == names]
    told, before = await wrong(volume, [state[0] for state in left], case.blocks)
    left = [left[i] for i in before]
    for name in names:
        async with volume.view(name) as view:
            more, same = await wrong(view, [state[1][name] for state in left], case.blocks)
        told, left = told + more, [left[i] for i in same]
    assert left, "wrong data"
    return left[0], told


async def wrong(source: LogVolume | SnapshotView, contents: list[Content], blocks: range) -> tuple[int, list[int]]:
    """How many blocks are errors, and which of the contents agree with all others."""
    told, left = 0, list(range(len(contents)))
    for block in blocks:
        try:
            data: Buffer = await source.read(BLOCK, block * BLOCK)
        except CorruptData as error:
            check_name(error)
            told += 1
        else:
            left = [i for i in left if contents[i].get(block, bytes(BLOCK)) == data]
    return told, left


def stored(backend: MemoryBackend, volume_id: str) -> Iterator[int]:
    """The offsets of all blocks of the space that are not holes."""
    space = backend.spaces[volume_id]
    for number, held in sorted(space._held.items()):
        for page in range(16):
            if held >> page & 1:
                yield number * 65536 + page * BLOCK


@contextmanager
def flipped(backend: MemoryBackend, volume_id: str, bit: int) -> Iterator[None]:
    """A bit of the space is the other way round."""
    space = backend.spaces[volume_id]
    byte = space.read(1, bit // 8)
    space.write(bytes([byte[0] ^ 1 << bit % 8]), bit // 8)
    yield
    space.write(byte, bit // 8)


def bits_to_flip(case: Case, volume_id: str) -> Iterator[int]:
    """All bits of what is stored; or one of every fourth byte that is not zero, and samples of the rest."""
    choose = random.Random(f"{volume_id} {len(case.log)}")
    for offset in stored(case.backend, volume_id):
        data = case.backend.read_nowait(volume_id, BLOCK, offset)
        if FULL:
            yield from range(offset * 8, (offset + BLOCK) * 8)
            continue
        meant = [at for at in range(BLOCK) if data[at]]
        meant = choose.sample(meant, 8) if len(meant) > 3500 else meant[choose.randrange(4) :: 4]
        for at in sorted({*meant, *choose.sample(range(BLOCK), 8)}):
            yield (offset + at) * 8 + choose.randrange(8)


CASES: dict[str, Callable[[], Awaitable[Case]]] = {
    "closed": lambda: small(close=True),
    "abandoned-with-a-mark": lambda: small(close=False, mark=True),
    "abandoned-right-after-a-flush": lambda: small(close=False),
}


@pytest.mark.parametrize("volume_id", ["v", "c"])
@pytest.mark.parametrize("name", CASES)
async def test_a_flipped_bit_is_an_error_or_no_harm(name: str, volume_id: str) -> None:
    if volume_id == "c" and name != "closed":
        pytest.skip("the clone is the same in all cases")
    case = await CASES[name]()
    errors = flips = fallbacks = 0
    for bit in bits_to_flip(case, volume_id):
        # Attaching writes, so it needs a copy; a reader sees the same bytes by the same code. Each byte has either.
        attach = FULL or flips % 5 == 0
        allowed = case.allowed(volume_id, [bit // 8])
        with flipped(case.backend, volume_id, bit):
            backend = case.copy() if attach else case.backend
            try:
                told, found = await examine(case, backend, allowed, attach=attach)
            except AssertionError as error:
                error.add_note(f"bit {bit % 8} of byte {bit // 8:#x} of volume {volume_id}")
                raise
        flips += 1
        errors += bool(told)
        fallbacks += found > 0
    assert flips > 100
    assert errors > flips // 10, "most flips must matter, else this test tests nothing"
    assert bool(fallbacks) == (name == "abandoned-right-after-a-flush"), (
        "the last flush without a witness falls back to the barrier before"
    )


@pytest.mark.parametrize("volume_id", ["v", "c"])
async def test_a_flipped_bit_of_the_manifest_is_an_error(volume_id: str) -> None:
    case = await small(close=True)
    data, version = case.backend.spaces[volume_id].manifest
    step = 1 if FULL else 5
    for bit in range(0, len(data) * 8, step):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        case.backend.spaces[volume_id].manifest = Manifest(bytes(damaged), version)
        with trio.fail_after(5), pytest.raises(FusevolError, match=f'"{volume_id}"'):
            async with open_volume(case.backend, volume_id, options=QUIET):
                pass
        assert case.backend.spaces[volume_id].manifest.data == damaged, "nothing was written"


async def refused(backend: MemoryBackend, volume_id: str = "v", error: type[FusevolError] = CorruptData) -> None:
    """The volume can be opened neither way, and what there is of it can still be deleted."""
    for read_only in (True, False):
        with trio.fail_after(5), pytest.raises(error, match=f'"{volume_id}"'):
            async with open_volume(backend, volume_id, options=QUIET, read_only=read_only):
                pass


async def test_a_manifest_cut_anywhere_or_with_bytes_behind_it_is_an_error() -> None:
    case = await small(close=True)
    data, _ = case.backend.spaces["v"].manifest
    for length in range(len(data)):
        case.backend.spaces["v"].manifest = Manifest(data[:length], new_version())
        await refused(case.backend)
    for more in (b"\0", data):
        case.backend.spaces["v"].manifest = Manifest(data + more, new_version())
        await refused(case.backend)


async def test_a_missing_manifest_is_an_error_and_such_a_volume_can_be_deleted() -> None:
    case = await small(close=True)
    case.backend.spaces["c"].manifest = Manifest(b"", NO_VERSION)
    await refused(case.backend, "c")
    await delete_volume(case.backend, "c")
    case.backend.spaces["v"].manifest = Manifest(b"", NO_VERSION)
    await refused(case.backend)
    await delete_volume(case.backend, "v")
    assert not case.backend.spaces


async def test_a_manifest_of_a_later_format_is_not_supported() -> None:
    case = await small(close=True)
    data = case.backend.spaces["v"].manifest.data
    body = data[12:-8].replace(b'"format":1', b'"format":2,"more":{"things":[]}')
    head = struct.pack("<8sI", b"FVMANIF1", len(body)) + body
    case.backend.spaces["v"].manifest = Manifest(head + struct.pack("<Q", xxh3_64_intdigest(head)), new_version())
    await refused(case.backend, error=NotSupported)


@pytest.mark.parametrize("used", [False, True])
async def test_a_manifest_of_another_volume_is_an_error(used: bool) -> None:
    case = await small(close=True)
    await create_volume(case.backend, "other")
    if used:
        async with open_volume(case.backend, "other", options=QUIET) as volume:
            await volume.write(block_bytes("other"), 0)
    case.backend.spaces["v"].manifest = case.backend.spaces["other"].manifest
    await refused(case.backend)


async def test_an_old_manifest_of_the_volume_overwrites_nothing() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    manifests = []
    for n in range(4):
        manifests.append(backend.spaces["v"].manifest)
        async with open_volume(backend, "v", options=QUIET) as volume:
            await volume.write(block_bytes(n), n * BLOCK)
            await volume.flush()
            volume.abandon()
    backend.spaces["v"].manifest = Manifest(manifests[-1].data, new_version())
    before = backend.spaces["v"].copy()
    with pytest.raises(CorruptData, match='manifest of volume "v" is older'):
        async with open_volume(backend, "v", options=QUIET):
            pass
    for offset in stored(backend, "v"):
        assert backend.spaces["v"].read(BLOCK, offset) == before.read(BLOCK, offset)


@pytest.mark.parametrize("name", CASES)
async def test_zeroed_swapped_and_repeated_blocks_are_errors_or_no_harm(name: str) -> None:
    case = await CASES[name]()
    choose = random.Random(1)
    for volume_id in ("v", "c"):
        offsets = list(stored(case.backend, volume_id))
        changes: list[dict[int, bytes]] = []
        blocks = {offset: case.backend.read_nowait(volume_id, BLOCK, offset) for offset in offsets}
        changes += [{offset: bytes(BLOCK)} for offset in offsets]
        changes += [dict.fromkeys(offsets[low : low + n], bytes(BLOCK)) for n in (2, 5) for low in range(len(offsets))]
        changes += [{offset: blocks[offset][:512] + bytes(BLOCK - 512)} for offset in offsets]
        pairs = [(a, b) for a in offsets for b in offsets if a < b]
        changes += [{a: blocks[b], b: blocks[a]} for a, b in choose.sample(pairs, min(len(pairs), 60))]
        changes += [{a: blocks[b]} for a, b in choose.sample(pairs, min(len(pairs), 60))]
        for change in changes:
            backend = case.copy()
            for offset, data in change.items():
                backend.spaces[volume_id].write(data, offset)
            await examine(case, backend, case.allowed(volume_id, change))


@pytest.mark.parametrize("name", CASES)
async def test_a_truncated_space_is_an_error_or_no_harm(name: str) -> None:
    case = await CASES[name]()
    for volume_id in ("v", "c"):
        offsets = list(stored(case.backend, volume_id))
        for offset in offsets:
            for cut in (offset, offset + 1, offset + 2048, offset + BLOCK - 1):
                backend = case.copy()
                space = backend.spaces[volume_id]
                if cut >= space.end:
                    continue
                space.discard(space.end - cut, cut)
                space.end = cut
                lost = [other for other in offsets if other + BLOCK > cut]
                await examine(case, backend, case.allowed(volume_id, lost))


# -- a larger volume ------------------------------------------------------------------------------


async def large(*, close: bool) -> Case:
    """Thousands of blocks in several leaves, with checkpoints in the background and discarded ranges."""
    choose = random.Random(5)
    blocks = range(9000)
    live: Content = {}
    backend = MemoryBackend()
    await create_volume(backend, "v")
    options = LogOptions(checkpoint_bytes=4 << 20, idle_seconds=0, slack_bytes=1 << 20)
    snapshots: dict[str, Content] = {}
    async with open_volume(backend, "v", options=options) as volume:
        for turn in range(24):
            start, count = choose.randrange(8400), choose.randrange(1, 600)
            pieces = [struct.pack("<QQ", turn, block + 1) * (BLOCK // 16) for block in range(start, start + count)]
            await volume.write(b"".join(pieces), start * BLOCK)
            live.update(zip(range(start, start + count), pieces, strict=True))
            start, count = choose.randrange(8900), choose.randrange(100)
            await volume.discard(count * BLOCK, start * BLOCK)
            for block in range(start, start + count):
                live.pop(block, None)
            await volume.flush()
            if turn in (8, 16):
                await volume.snapshot(f"s{turn}")
                snapshots[f"s{turn}"] = dict(live)
        await marked(volume, True)
        if not close:
            volume.abandon()
    return Case(backend, {"v": [(live, snapshots)]}, blocks=blocks)


@pytest.mark.parametrize("close", [True, False])
async def test_a_flipped_bit_in_a_larger_volume_is_an_error_or_no_harm(close: bool) -> None:
    case = await large(close=close)
    choose = random.Random(close)
    offsets = list(stored(case.backend, "v"))
    starts = [offset for offset in offsets if case.backend.read_nowait("v", 8, offset) == b"FVBATCH1"]
    sums = {xxh3_64_intdigest(data) for data in case.states["v"][0][0].values()}
    others = [o for o in offsets if xxh3_64_intdigest(case.backend.read_nowait("v", BLOCK, o)) not in sums]
    count = 2000 if FULL else 3
    assert await examine(case, case.copy(), [0]) == (0, 0)
    for offset in (
        *choose.choices(offsets, k=count),
        *choose.choices(starts, k=count),
        *choose.choices(others, k=count),
    ):
        bit = (offset + choose.randrange(choose.choice((64, 512, BLOCK)))) * 8 + choose.randrange(8)
        with flipped(case.backend, "v", bit):
            try:
                await examine(case, case.copy(), [0])
            except AssertionError as error:
                error.add_note(f"bit {bit % 8} of byte {bit // 8:#x}")
                raise


async def test_a_later_epoch_bears_witness_of_the_batches_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes on in another epoch, far away; what was durable before must not be given up for a torn write."""
    monkeypatch.setattr("fusevol.log.committed.EPOCH_BLOCKS", 16)
    backend = MemoryBackend()
    await create_volume(backend, "v")
    live: Content = {}
    async with open_volume(backend, "v", options=QUIET) as volume:
        for block in range(12):
            await volume.write(block_bytes(block), block * BLOCK)
            await volume.flush()
            live[block] = block_bytes(block)
        volume.abandon()
    log = log_behind_checkpoint(backend)
    epochs = [batch.start // BLOCK >> 27 for batch in log]
    assert len(set(epochs)) > 1, "the log went on in another epoch"
    for number, batch in enumerate(log[:-1]):
        for bit in (batch.start * 8, (batch.start + 150) * 8, (batch.start + BLOCK + 9) * 8):
            with flipped(backend, "v", bit):
                twin = MemoryBackend()
                twin.spaces = {"v": backend.spaces["v"].copy()}
                with trio.fail_after(5), pytest.raises(CorruptData, match='"v"'):  # noqa: PT012
                    async with open_volume(twin, "v", options=QUIET) as volume:
                        for block in range(12):
                            assert await volume.read(BLOCK, block * BLOCK) == live[block], f"batch {number}"
    async with open_volume(backend, "v", options=QUIET) as volume:
        assert {block: await volume.read(BLOCK, block * BLOCK) for block in live} == live
