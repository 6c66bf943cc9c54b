"""The crash states that a journal gives are all those that a power cut could leave, and no others."""

import random

import pytest
import trio
import trio.testing

from fusevol.backends.base import NO_VERSION, Manifest, Traits
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, Rule, delay, fail, short
from fusevol.backends.wrappers.recording import RecordingBackend
from fusevol.errors import BackendError, ManifestConflict, VolumeNotFound

SECTOR = 512


def states(backend: RecordingBackend, cut: int | None = None, n: int = 300) -> list[MemoryBackend]:
    cut = len(backend.journal) if cut is None else cut
    return [backend.journal.materialise(cut, random.Random(seed)) for seed in range(n)]


def contents(backend: RecordingBackend, size: int, cut: int | None = None, offset: int = 0) -> set[bytes]:
    return {state.spaces["v"].read(size, offset).ljust(size, b"\0") for state in states(backend, cut)}


async def recording(*rules: Rule, inner: MemoryBackend | None = None) -> RecordingBackend:
    backend = RecordingBackend(FaultyBackend(inner or MemoryBackend(), rules))
    await backend.create("v")
    return backend


async def test_the_journal_has_a_begin_and_an_end_of_every_call_in_order() -> None:
    backend = await recording()
    await backend.write("v", bytearray(b"abc"), 5)
    await backend.flush("v")
    events = [(what, call.kind) for what, call in backend.journal]
    assert events == [(what, kind) for kind in ("create", "write", "flush") for what in ("begin", "end")]
    (write,) = backend.journal.calls("write")
    assert (write.data, write.offset, write.written, write.begin, write.end) == (b"abc", 5, 3, 2, 3)


async def test_the_same_seed_gives_the_same_state() -> None:
    backend = await recording()
    for i in range(20):
        await backend.write("v", random.Random(i).randbytes(4096), i * 4096)
    one, two = (backend.journal.materialise(41, random.Random(7)).spaces["v"] for _ in range(2))
    assert one.read(1 << 20, 0) == two.read(1 << 20, 0)


async def test_a_flushed_write_is_in_every_state_once_the_flush_returned() -> None:
    backend = await recording()
    await backend.write("v", b"a" * SECTOR, 0)
    await backend.flush("v")
    assert contents(backend, SECTOR) == {b"a" * SECTOR}
    assert contents(backend, SECTOR, len(backend.journal) - 1) == {b"a" * SECTOR, bytes(SECTOR)}


async def test_an_unflushed_write_is_there_or_not_or_in_part() -> None:
    backend = await recording()
    await backend.write("v", b"a" * SECTOR * 2, 0)
    a, no = b"a" * SECTOR, bytes(SECTOR)
    assert contents(backend, 2 * SECTOR) == {a + a, a + no, no + a, no + no}


async def test_sectors_are_those_of_the_store_not_of_the_write() -> None:
    backend = await recording()
    await backend.write("v", b"aabb", SECTOR - 2)
    assert contents(backend, 4, offset=SECTOR - 2) == {b"aabb", b"aa\0\0", b"\0\0bb", bytes(4)}


async def test_atomic_writes_are_never_torn() -> None:
    inner = MemoryBackend()
    inner.traits = Traits(durable=False, atomic_writes=True)
    backend = await recording(inner=inner)
    await backend.write("v", b"a" * SECTOR * 2, 0)
    assert contents(backend, 2 * SECTOR) == {b"a" * SECTOR * 2, bytes(2 * SECTOR)}


async def test_a_write_that_had_not_returned_when_the_flush_began_is_not_covered() -> None:
    backend = await recording(delay("write", seconds=1), delay("flush", seconds=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.write, "v", b"a" * SECTOR, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(backend.flush, "v")
    assert contents(backend, SECTOR) == {b"a" * SECTOR, bytes(SECTOR)}


async def test_flushing_one_volume_covers_no_other() -> None:
    backend = await recording()
    await backend.create("w")
    await backend.write("v", b"a", 0)
    await backend.flush("w")
    assert contents(backend, 1) == {b"a", b"\0"}


async def test_later_writes_to_the_same_bytes_are_never_undone_by_earlier_ones_once_flushed() -> None:
    backend = await recording()
    await backend.write("v", b"a", 0)
    await backend.write("v", b"b", 0)
    assert contents(backend, 1) == {b"a", b"b", b"\0"}
    await backend.flush("v")
    assert contents(backend, 1) == {b"b"}
    await backend.write("v", b"c", 0)
    assert contents(backend, 1) == {b"b", b"c"}


async def test_overlapping_writes_in_flight_together_end_up_in_either_order() -> None:
    backend = await recording(delay("write", seconds=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.write, "v", b"a", 0)
        nursery.start_soon(backend.write, "v", b"b", 0)
    await backend.flush("v")
    assert contents(backend, 1) == {b"a", b"b"}


async def test_only_what_a_short_write_acknowledged_is_covered() -> None:
    backend = await recording(short(keep=1))
    assert await backend.write("v", b"ab", 0) == 1
    await backend.flush("v")
    assert contents(backend, 2) == {b"a\0"}


async def test_a_failed_write_may_have_had_its_effect_even_after_a_flush() -> None:
    backend = await recording(fail("write"))
    with pytest.raises(BackendError):
        await backend.write("v", b"a", 0)
    await backend.flush("v")
    assert contents(backend, 1) == {b"a", b"\0"}


async def test_a_failed_flush_takes_its_writes_out_of_every_later_promise() -> None:
    backend = await recording(fail("flush", nth=1))
    await backend.write("v", b"a", 0)
    with pytest.raises(BackendError):
        await backend.flush("v")
    await backend.write("v", b"b", SECTOR)
    await backend.flush("v")
    assert contents(backend, 1) == {b"a", b"\0"}
    assert contents(backend, 1, offset=SECTOR) == {b"b"}


async def test_a_failed_flush_takes_nothing_back_that_an_earlier_one_covered() -> None:
    backend = await recording(fail("flush", nth=2))
    await backend.write("v", b"a", 0)
    await backend.flush("v")
    with pytest.raises(BackendError):
        await backend.flush("v")
    assert contents(backend, 1) == {b"a"}


async def test_discards_come_back_to_life_only_until_the_next_flush() -> None:
    backend = await recording()
    await backend.write("v", b"a" * SECTOR, 0)
    await backend.flush("v")
    await backend.discard("v", 2**62, 0)
    assert contents(backend, SECTOR) == {b"a" * SECTOR, bytes(SECTOR)}
    await backend.flush("v")
    assert contents(backend, SECTOR) == {bytes(SECTOR)}
    assert {state.spaces["v"].used_size() for state in states(backend)} == {0}


async def test_a_manifest_put_is_there_at_once_and_one_in_flight_perhaps() -> None:
    backend = await recording()
    version = await backend.put_manifest("v", b"one", NO_VERSION)
    assert {s.spaces["v"].manifest for s in states(backend)} == {Manifest(b"one", version)}
    in_flight = {s.spaces["v"].manifest.data for s in states(backend, len(backend.journal) - 1)}
    assert in_flight == {b"one", b""}
    assert len({s.spaces["v"].manifest.version for s in states(backend, len(backend.journal) - 1)}) > 2


async def test_a_manifest_put_that_failed_is_decided_by_what_is_read_afterwards() -> None:
    backend = await recording(fail("put_manifest", nth=2), fail("put_manifest", nth=3, after=True))
    first = await backend.put_manifest("v", b"one", NO_VERSION)
    with pytest.raises(BackendError):
        await backend.put_manifest("v", b"two", first)
    assert {s.spaces["v"].manifest.data for s in states(backend)} == {b"one", b"two"}
    assert (await backend.get_manifest("v")).data == b"one"
    assert {s.spaces["v"].manifest.data for s in states(backend)} == {b"one"}
    with pytest.raises(BackendError):
        await backend.put_manifest("v", b"three", first)
    assert {s.spaces["v"].manifest.data for s in states(backend)} == {b"one", b"three"}
    third = await backend.get_manifest("v")
    assert {s.spaces["v"].manifest for s in states(backend)} == {third}
    with pytest.raises(ManifestConflict):
        await backend.put_manifest("v", b"four", first)
    assert {s.spaces["v"].manifest for s in states(backend)} == {third}


async def test_create_and_delete_are_there_once_they_returned_and_perhaps_before() -> None:
    backend = await recording()
    assert {tuple(s.spaces) for s in states(backend, 0)} == {()}
    assert {tuple(s.spaces) for s in states(backend, 1)} == {(), ("v",)}
    assert {tuple(s.spaces) for s in states(backend, 2)} == {("v",)}
    await backend.write("v", b"a", 0)
    await backend.flush("v")
    await backend.delete("v")
    during = states(backend, len(backend.journal) - 1)
    assert {tuple(s.spaces) for s in during} == {(), ("v",)}
    assert {s.spaces["v"].read(1, 0) for s in during if s.spaces} == {b"a", b"\0"}
    assert {tuple(s.spaces) for s in states(backend)} == {()}
    await backend.create("v")
    assert contents(backend, 1) == {b"\0"}


async def test_a_failed_delete_is_decided_by_what_is_seen_afterwards() -> None:
    backend = await recording(fail("delete", after=True))
    with pytest.raises(BackendError):
        await backend.delete("v")
    assert {tuple(s.spaces) for s in states(backend)} == {(), ("v",)}
    with pytest.raises(VolumeNotFound):
        await backend.delete("v")
    assert {tuple(s.spaces) for s in states(backend)} == {()}


async def test_a_state_can_be_wrapped_again_and_the_power_cut_once_more() -> None:
    backend = await recording()
    await backend.write("v", b"a" * SECTOR, 0)
    await backend.flush("v")
    again = RecordingBackend(backend.journal.materialise(len(backend.journal), random.Random(1)))
    await again.write("v", b"b" * SECTOR, SECTOR)
    await again.inner.write("v", b"x", 0)  # behind the journal's back: not part of any state
    assert contents(again, 2 * SECTOR) == {b"a" * SECTOR + b"b" * SECTOR, b"a" * SECTOR + bytes(SECTOR)}


async def test_a_cut_outside_the_journal_is_an_error() -> None:
    backend = await recording()
    with pytest.raises(IndexError):
        backend.journal.materialise(3, random.Random(0))


@pytest.mark.parametrize("seed", range(30))
async def test_every_state_of_a_random_run_agrees_with_a_model_of_each_sector(seed: int) -> None:
    # Sequential calls, one sector each: a sector must hold its last covered value or a later one.
    rng = random.Random(seed)
    backend = await recording()
    history: list[list[tuple[int, bytes]]] = [[(0, b"\0")] for _ in range(4)]
    flushed: list[tuple[int, int]] = []  # (position after which it holds, length of journal it covers)
    for i in range(40):
        begin = len(backend.journal)
        if rng.random() < 0.2:
            await backend.flush("v")
            flushed.append((len(backend.journal), begin))
        else:
            sector, value = rng.randrange(4), bytes([i + 1])
            await backend.write("v", value * SECTOR, sector * SECTOR)
            history[sector].append((begin, value))
    for cut in range(2, len(backend.journal) + 1):
        state = backend.journal.materialise(cut, random.Random(seed * 1000 + cut)).spaces["v"]
        covered = max((until for after, until in flushed if after <= cut), default=0)
        for sector in range(4):
            (found,) = set(state.read(SECTOR, sector * SECTOR)) or {0}
            old = [v for begin, v in history[sector] if begin < covered or begin == 0]
            new = [v for begin, v in history[sector] if covered <= begin < cut]
            assert bytes([found]) in [old[-1], *new]
