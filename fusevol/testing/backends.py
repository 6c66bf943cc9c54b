# ruff: noqa: D102 - the names of the tests are the sentences
"""BackendContract: the tests that a backend must pass. Needs pytest and pytest-trio in trio mode.

    class TestShelfBackend(BackendContract):
        @pytest.fixture
        async def backend(self, tmp_path):
            backend = ShelfBackend(tmp_path)
            yield backend
            await backend.aclose()

        @pytest.fixture
        def reopen(self, tmp_path):
            return lambda: ShelfBackend(tmp_path)

`backend` is a fresh, empty one. `reopen` makes another instance on the same store, as another process
would; leave it out where there can be none (then the tests that need it are skipped). Tests of ranges that are no whole
blocks are skipped where `Traits.block` has them refused, and then it is tested that they are.
"""

import contextlib
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Backend, Manifest
from fusevol.errors import AlreadyExists, InvalidArgument, ManifestConflict, VolumeNotFound

__all__ = ["BackendContract"]

KIB = 1024
MIB = 1024 * KIB
AROUND = 32 * KIB
#: Where discards take effect at the latest: a multiple of every page and block size in use.
ALIGN = 64 * KIB
#: What a block can be at most.
BLOCK = 4 * KIB

Reopen = Callable[[], Backend]

#: One of every call that must fail for a volume that is not there.
CALLS: dict[str, Callable[[Backend, str], Awaitable[object]]] = {
    "delete": lambda backend, name: backend.delete(name),
    "used_size": lambda backend, name: backend.used_size(name),
    "read": lambda backend, name: backend.read(name, BLOCK, 0),
    "read_around": lambda backend, name: backend.read_around(name, BLOCK, 0, AROUND),
    "write": lambda backend, name: backend.write(name, b"x" * 4096, 0),
    "flush": lambda backend, name: backend.flush(name),
    "discard": lambda backend, name: backend.discard(name, 4096, 0),
    "get_manifest": lambda backend, name: backend.get_manifest(name),
    "put_manifest": lambda backend, name: backend.put_manifest(name, b"m", NO_VERSION),
}


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress and are the same every time."""
    return random.Random(seed).randbytes(size)


async def put(backend: Backend, data: Buffer, offset: int) -> None:
    """Write all of `data`, going on after short writes."""
    view = memoryview(data)
    while len(view):
        written = await backend.write("v", view, offset)
        assert 0 < written <= len(view)
        view, offset = view[written:], offset + written


async def get(backend: Backend, size: int, offset: int) -> bytes:
    """Read, and check that what does not wait says the same or nothing, and `read_around` the same and perhaps more."""
    data = bytes(await backend.read("v", size, offset))
    assert backend.read_nowait("v", size, offset) in (None, data)
    assert backend.read_kept("v", size, offset) in (None, data)
    start, around = await backend.read_around("v", size, offset, AROUND)
    assert offset - offset % AROUND <= start <= offset
    assert start + len(around) <= -(-(offset + size) // AROUND) * AROUND
    assert bytes(around[offset - start :][:size]) == data
    return data


class BackendContract:
    """Subclass it as Test..., and supply the fixture `backend` and, where possible, `reopen`."""

    @pytest.fixture
    def reopen(self) -> Reopen | None:
        """A function that makes another instance on the same store; None where there can be none."""
        return None

    @pytest.fixture
    async def volume(self, backend: Backend) -> Backend:
        """The backend, with a volume `v`."""
        await backend.create("v")
        return backend

    @pytest.fixture
    async def bytewise(self, volume: Backend) -> Backend:
        """The same, where any range will do."""
        if volume.traits.block > 1:
            pytest.skip("whole blocks only")
        return volume

    # Volumes

    async def test_sweeping_takes_nothing_from_volumes(self, backend: Backend) -> None:
        for volume_id in ("gone", "v"):
            await backend.create(volume_id)
        await backend.delete("gone")
        version = await backend.put_manifest("v", b"manifest", NO_VERSION)
        await backend.write("v", b"x" * 4096, 0)
        await backend.sweep()
        assert await backend.list() == ["v"]
        assert await backend.get_manifest("v") == (b"manifest", version)
        assert bytes(await backend.read("v", 4096, 0)) == b"x" * 4096

    async def test_created_volumes_are_listed_sorted_and_deleted_ones_are_not(self, backend: Backend) -> None:
        assert await backend.list() == []
        for name in ("v2", "v10", "a.b-c_D", "x" * 128):
            await backend.create(name)
        assert await backend.list() == ["a.b-c_D", "v10", "v2", "x" * 128]
        await backend.delete("v10")
        assert await backend.list() == ["a.b-c_D", "v2", "x" * 128]

    async def test_a_new_volume_is_empty(self, volume: Backend) -> None:
        assert await get(volume, BLOCK, 0) == b""
        assert await volume.used_size("v") == 0
        assert await volume.get_manifest("v") == Manifest(b"", NO_VERSION)
        await volume.flush("v")

    async def test_create_of_an_existing_volume_is_refused_and_changes_nothing(self, volume: Backend) -> None:
        await put(volume, noise(BLOCK), 0)
        version = await volume.put_manifest("v", b"m", NO_VERSION)
        with pytest.raises(AlreadyExists):
            await volume.create("v")
        assert await get(volume, BLOCK, 0) == noise(BLOCK)
        assert await volume.get_manifest("v") == Manifest(b"m", version)

    @pytest.mark.parametrize("call", CALLS)
    async def test_calls_on_a_missing_volume_raise_volume_not_found(self, backend: Backend, call: str) -> None:
        with pytest.raises(VolumeNotFound):
            await CALLS[call](backend, "v")
        assert await backend.list() == []

    async def test_read_nowait_of_a_missing_volume_answers_nothing(self, backend: Backend) -> None:
        with contextlib.suppress(VolumeNotFound):
            assert backend.read_nowait("v", BLOCK, 0) is None

    @pytest.mark.parametrize("call", ["create", *CALLS])
    async def test_a_bad_volume_id_is_an_invalid_argument(self, backend: Backend, call: str) -> None:
        for name in ("", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "a b", "ä", "a\n", "x" * 129, "x" * 200):
            with pytest.raises(InvalidArgument):
                await (backend.create(name) if call == "create" else CALLS[call](backend, name))
        assert await backend.list() == []

    @pytest.mark.parametrize("call", CALLS)
    async def test_a_deleted_volume_is_gone_for_every_call(self, volume: Backend, call: str) -> None:
        await put(volume, noise(8192), 0)
        await volume.put_manifest("v", b"m", NO_VERSION)
        await volume.delete("v")
        with pytest.raises(VolumeNotFound):
            await CALLS[call](volume, "v")

    async def test_a_volume_made_again_has_nothing_of_the_old_one(self, volume: Backend) -> None:
        await put(volume, noise(8192), 0)
        old = await volume.put_manifest("v", b"m", NO_VERSION)
        await volume.delete("v")
        await volume.create("v")
        assert await get(volume, 8192, 0) == b""
        assert await volume.used_size("v") == 0
        assert await volume.get_manifest("v") == Manifest(b"", NO_VERSION)
        with pytest.raises(ManifestConflict):
            await volume.put_manifest("v", b"m", old)
        assert await volume.put_manifest("v", b"m", NO_VERSION) != old

    async def test_volumes_know_nothing_of_each_other(self, volume: Backend) -> None:
        for name in ("w", "v.", "vv", "V"):
            await volume.create(name)
        await put(volume, noise(BLOCK), 0)
        await volume.put_manifest("v", b"m", NO_VERSION)
        for name in ("w", "v.", "vv", "V"):
            assert bytes(await volume.read(name, BLOCK, 0)) == b""
            assert (await volume.get_manifest(name)).data == b""
            await volume.delete(name)
        assert await get(volume, BLOCK, 0) == noise(BLOCK)

    # Reading and writing

    @pytest.mark.parametrize(
        ("size", "offset"),
        [(1, 0), (4096, 0), (4096, 4096), (1, 4095), (3, 4095), (5000, 100), (64 * KIB, 1), (MIB + 1, 511)],
    )
    async def test_what_was_written_is_read_at_any_alignment(self, bytewise: Backend, size: int, offset: int) -> None:
        data = noise(size)
        await put(bytewise, data, offset)
        assert await get(bytewise, size, offset) == data
        assert await get(bytewise, size + 9, offset) == data
        assert await get(bytewise, offset + size, 0) == bytes(offset) + data
        assert await get(bytewise, max(0, size - 2), offset + 1) == data[1 : size - 1]

    async def test_holes_read_as_zeros(self, bytewise: Backend) -> None:
        await put(bytewise, b"abc", 10)
        await put(bytewise, b"def", 300_000)
        assert await get(bytewise, 20, 5) == bytes(5) + b"abc" + bytes(12)
        assert await get(bytewise, 299_990 + 3, 13) == bytes(299_987) + b"def"[:3] + b""
        assert await get(bytewise, 100, 200_000) == bytes(100)

    async def test_reads_are_short_only_where_the_space_ends(self, bytewise: Backend) -> None:
        await put(bytewise, b"abcdef", 4094)
        assert await get(bytewise, 100, 4094) == b"abcdef"
        assert await get(bytewise, 100, 4099) == b"f"
        assert await get(bytewise, 100, 4100) == b""
        assert await get(bytewise, 100, 2**62) == b""

    async def test_of_whole_blocks_any_can_be_read(self, volume: Backend) -> None:
        one, two = noise(3 * BLOCK, 1), noise(BLOCK, 2)
        await put(volume, one, BLOCK)
        await put(volume, two, 80 * BLOCK)
        whole = bytes(BLOCK) + one + bytes(76 * BLOCK) + two
        for first, end in ((0, 81), (0, 1), (1, 4), (2, 3), (3, 20), (5, 9), (31, 80), (79, 81), (80, 90), (81, 85)):
            expected = whole[first * BLOCK : end * BLOCK]
            assert await get(volume, (end - first) * BLOCK, first * BLOCK) == expected

    async def test_whole_blocks_can_be_written_again_where_that_is_promised(self, volume: Backend) -> None:
        if not volume.traits.rewritable:
            pytest.skip("not rewritable")
        expected = bytearray()
        for seed, (first, end) in enumerate(((1, 9), (3, 5), (0, 2), (8, 12), (0, 12), (5, 6))):
            expected.extend(bytes(max(0, end * BLOCK - len(expected))))
            expected[first * BLOCK : end * BLOCK] = noise((end - first) * BLOCK, seed)
            await put(volume, expected[first * BLOCK : end * BLOCK], first * BLOCK)
            assert await get(volume, 20 * BLOCK, 0) == expected

    async def test_what_is_not_whole_blocks_is_refused_where_it_cannot_be_had(self, volume: Backend) -> None:
        block = volume.traits.block
        if block == 1:
            pytest.skip("any range will do")
        assert not BLOCK % block
        await put(volume, noise(4 * block), 0)
        for size, offset in ((1, 0), (block - 1, 0), (block, 1), (block, block - 1), (block + 1, 2 * block)):
            for call in (volume.read, volume.read_around, volume.discard):
                with pytest.raises(InvalidArgument):
                    await call("v", size, offset, *((AROUND,) if call == volume.read_around else ()))
            with pytest.raises(InvalidArgument):
                await volume.write("v", bytes(size), offset)
            assert volume.read_nowait("v", size, offset) is None
            assert volume.read_kept("v", size, offset) is None
        assert await get(volume, 5 * block, 0) == noise(4 * block)

    async def test_zero_bytes_can_be_read_and_written(self, volume: Backend) -> None:
        assert await volume.write("v", b"", 5000) == 0
        assert await get(volume, 0, 0) == b""
        assert await get(volume, BLOCK, 0) == b""
        await volume.discard("v", 0, 0)
        await put(volume, noise(BLOCK), 0)
        assert await get(volume, 0, 1) == b""
        assert await get(volume, 3 * BLOCK, 0) == noise(BLOCK)

    async def test_offsets_may_be_vast(self, volume: Backend) -> None:
        for offset in (2**32 - BLOCK, 2**40 + BLOCK, 2**62, 2**62 + 2**61):
            data = noise(2 * BLOCK, offset)
            await put(volume, data, offset)
            assert await get(volume, 2 * BLOCK, offset) == data
        assert await get(volume, 2 * BLOCK, 2**50) == bytes(2 * BLOCK)
        assert await volume.used_size("v") < 16 * MIB

    async def test_negative_and_impossible_ranges_are_invalid_arguments(self, volume: Backend) -> None:
        for size, offset in ((1, -1), (-1, 0), (1, 2**63), (2, 2**63 - 1)):
            with pytest.raises(InvalidArgument):
                await volume.read("v", size, offset)
            with pytest.raises(InvalidArgument):
                await volume.read_around("v", size, offset, AROUND)
            with pytest.raises(InvalidArgument):
                await volume.discard("v", size, offset)
            if size >= 0:
                with pytest.raises(InvalidArgument):
                    await volume.write("v", b"x" * size, offset)
        assert await get(volume, BLOCK, 0) == b""

    async def test_a_write_of_eight_mebibytes_works(self, volume: Backend) -> None:
        data = noise(8 * MIB)
        await put(volume, data, 3 * BLOCK)
        assert await get(volume, 8 * MIB, 3 * BLOCK) == data
        assert await get(volume, 17 * BLOCK, 3 * BLOCK + 5 * MIB) == data[5 * MIB : 5 * MIB + 17 * BLOCK]

    async def test_any_kind_of_buffer_can_be_written(self, volume: Backend) -> None:
        data = noise(4 * BLOCK)
        await put(volume, bytearray(data[:BLOCK]), 0)
        await put(volume, memoryview(data)[BLOCK : 2 * BLOCK], BLOCK)
        await put(volume, memoryview(bytearray(data[2 * BLOCK :])), 2 * BLOCK)
        assert await get(volume, 4 * BLOCK, 0) == data
        version = await volume.put_manifest("v", bytearray(b"one"), NO_VERSION)
        await volume.put_manifest("v", memoryview(b"two"), version)
        assert bytes((await volume.get_manifest("v")).data) == b"two"

    async def test_a_buffer_may_be_reused_once_its_write_returned(self, volume: Backend) -> None:
        buffer = bytearray(noise(25 * BLOCK))
        kept = bytes(buffer)
        assert await volume.write("v", buffer, 0) == len(kept)
        buffer[:] = bytes(len(kept))
        del buffer[10:]  # not possible while somebody holds a view of it
        await volume.flush("v")
        assert await get(volume, len(kept), 0) == kept

    async def test_bytes_that_were_read_do_not_change_with_later_writes(self, volume: Backend) -> None:
        if not volume.traits.rewritable:
            pytest.skip("not rewritable")
        await put(volume, b"a" * 4096, 0)
        before = await volume.read("v", 4096, 0)
        await put(volume, b"b" * 4096, 0)
        assert bytes(before) == b"a" * 4096

    async def test_overlapping_writes_follow_the_traits(self, bytewise: Backend) -> None:
        await put(bytewise, b"a" * 8192, 4096)
        for size, offset in ((8192, 4096), (4096, 6000), (8192, 0), (8192, 8192), (100, 5000), (20_000, 0)):
            if bytewise.traits.rewritable:
                expected = bytearray(await get(bytewise, 50_000, 0))
                expected[offset : offset + size] = b"b" * size
                await put(bytewise, b"b" * size, offset)
                assert await get(bytewise, 50_000, 0) == expected
            else:
                with pytest.raises(InvalidArgument):
                    await bytewise.write("v", b"b" * size, offset)
                assert await get(bytewise, 50_000, 0) == bytes(4096) + b"a" * 8192

    async def test_the_very_same_write_can_be_repeated(self, volume: Backend) -> None:
        data = noise(3 * BLOCK)
        for _ in range(3):
            await put(volume, data, BLOCK)
        await volume.flush("v")
        await put(volume, data, BLOCK)
        assert await get(volume, 5 * BLOCK, BLOCK) == data

    async def test_calls_may_run_concurrently(self, volume: Backend) -> None:
        size = 10 * BLOCK

        async def work(number: int) -> None:
            data = noise(size, number)
            await put(volume, data, number * size)
            assert await get(volume, size, number * size) == data
            if number % 3 == 0:
                await volume.flush("v")
            assert await get(volume, BLOCK, number * size + BLOCK) == data[BLOCK : 2 * BLOCK]

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(work, number)
        assert await get(volume, 30 * size, 0) == b"".join(noise(size, number) for number in range(30))

    # Space

    async def test_a_discard_leaves_the_neighbours_intact(self, bytewise: Backend) -> None:
        data = noise(6 * ALIGN)
        await put(bytewise, data, 0)
        for length, offset in ((ALIGN, ALIGN), (5000, 3 * ALIGN + 100), (1, 4 * ALIGN + 7)):
            await bytewise.discard("v", length, offset)
            assert len(await get(bytewise, length, offset)) == length
        await bytewise.flush("v")
        assert await get(bytewise, ALIGN, 0) == data[:ALIGN]
        assert await get(bytewise, ALIGN + 100, 2 * ALIGN) == data[2 * ALIGN : 3 * ALIGN + 100]
        tail = 3 * ALIGN + 5100
        assert await get(bytewise, 4 * ALIGN + 7 - tail, tail) == data[tail : 4 * ALIGN + 7]
        assert await get(bytewise, 2 * ALIGN, 4 * ALIGN + 8) == data[4 * ALIGN + 8 :]

    async def test_a_discard_of_blocks_leaves_their_neighbours_intact(self, volume: Backend) -> None:
        data = noise(4 * ALIGN)
        await put(volume, data, 0)
        for size, offset in ((ALIGN, ALIGN), (BLOCK, 2 * ALIGN + BLOCK)):
            await volume.discard("v", size, offset)
            assert len(await get(volume, size, offset)) == size
        await volume.flush("v")
        assert await get(volume, ALIGN, 0) == data[:ALIGN]
        assert await get(volume, BLOCK, 2 * ALIGN) == data[2 * ALIGN :][:BLOCK]
        rest = 2 * ALIGN + 2 * BLOCK
        assert await get(volume, 4 * ALIGN, rest) == data[rest:]

    async def test_used_size_falls_by_what_is_discarded_and_comes_back_to_zero(self, volume: Backend) -> None:
        sizes = []
        for number in range(4):
            await put(volume, noise(4 * ALIGN, number), number * 4 * ALIGN)
            sizes.append(await volume.used_size("v"))
        # A store may need a little more than the bytes, for its own bookkeeping.
        assert all(4 * ALIGN * n <= size <= 4 * ALIGN * n + ALIGN for n, size in enumerate(sizes, 1))
        for number, left in ((1, 3), (3, 2), (0, 1), (2, 0)):
            await volume.discard("v", 4 * ALIGN, number * 4 * ALIGN)
            await volume.flush("v")
            assert 0 <= await volume.used_size("v") - left * 4 * ALIGN <= (ALIGN if left else 0)
        await volume.discard("v", 4 * ALIGN, 0)  # again: no error, no effect

    async def test_space_discarded_bit_by_bit_is_given_back_in_the_end(self, volume: Backend) -> None:
        data = noise(16 * ALIGN)
        await put(volume, data, 0)
        order = list(range(16))
        random.Random(1).shuffle(order)
        for done, piece in enumerate(order, 1):
            await volume.discard("v", ALIGN, piece * ALIGN)
            for alive in order[done:]:
                assert await get(volume, ALIGN, alive * ALIGN) == data[alive * ALIGN : (alive + 1) * ALIGN]
            await volume.flush("v")
            assert await volume.used_size("v") <= 16 * ALIGN
        assert await volume.used_size("v") == 0

    async def test_one_discard_may_cover_many_writes_and_holes(self, volume: Backend) -> None:
        for number in range(5):
            await put(volume, noise(ALIGN, number), number * 3 * ALIGN)
        await volume.discard("v", 2**62, 3 * ALIGN)
        await volume.flush("v")
        assert ALIGN <= await volume.used_size("v") <= 2 * ALIGN
        assert await get(volume, ALIGN, 0) == noise(ALIGN, 0)

    # Manifest

    async def test_a_manifest_is_put_only_over_the_version_that_was_read(self, volume: Backend) -> None:
        one = await volume.put_manifest("v", b"one", NO_VERSION)
        assert await volume.get_manifest("v") == Manifest(b"one", one)
        for stale in (NO_VERSION, "no-such-version", one + "0"):
            with pytest.raises(ManifestConflict):
                await volume.put_manifest("v", b"stale", stale)
        two = await volume.put_manifest("v", b"two", one)
        assert two not in (one, NO_VERSION)
        with pytest.raises(ManifestConflict):
            await volume.put_manifest("v", b"stale", one)
        assert await volume.get_manifest("v") == Manifest(b"two", two)

    async def test_a_version_does_not_come_back_with_the_same_bytes(self, volume: Backend) -> None:
        first = await volume.put_manifest("v", b"A", NO_VERSION)
        second = await volume.put_manifest("v", b"B", first)
        third = await volume.put_manifest("v", b"A", second)
        assert len({first, second, third}) == 3
        with pytest.raises(ManifestConflict):
            await volume.put_manifest("v", b"C", first)
        fourth = await volume.put_manifest("v", b"A", third)  # the same bytes over themselves
        assert fourth not in (first, second, third)

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, MIB])
    async def test_manifests_of_any_size_come_back(self, volume: Backend, size: int) -> None:
        data = noise(size)
        version = await volume.put_manifest("v", data, NO_VERSION)
        assert version != NO_VERSION
        assert await volume.get_manifest("v") == Manifest(data, version)
        last = await volume.put_manifest("v", b"", version)
        assert await volume.get_manifest("v") == Manifest(b"", last)

    async def test_a_manifest_takes_nothing_of_the_space(self, volume: Backend) -> None:
        await volume.put_manifest("v", noise(100_000), NO_VERSION)
        assert await volume.used_size("v") == 0
        assert await get(volume, BLOCK, 0) == b""

    async def test_of_many_puts_over_one_version_one_wins(self, volume: Backend, reopen: Reopen | None) -> None:
        others = [reopen(), reopen()] if reopen else []
        contenders = [volume, *others]
        version = NO_VERSION
        for turn in range(5):
            won: list[Manifest] = []

            async def contend(backend: Backend, data: bytes, version: str = version, won: list[Manifest] = won) -> None:
                with contextlib.suppress(ManifestConflict):
                    won.append(Manifest(data, await backend.put_manifest("v", data, version)))

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    backend = contenders[number % len(contenders)]
                    nursery.start_soon(contend, backend, b"%d.%d" % (turn, number))
            assert len(won) == 1
            for backend in contenders:
                assert await backend.get_manifest("v") == won[0]
            version = won[0].version
        for backend in others:
            await backend.aclose()

    # Several instances, and the end

    async def test_another_instance_finds_what_was_flushed(self, volume: Backend, reopen: Reopen | None) -> None:
        if reopen is None:
            pytest.skip("no second instance")
        data = noise(25 * BLOCK)
        await put(volume, data, 4096)
        await put(volume, b"gone" * ALIGN, ALIGN * 8)
        await volume.discard("v", 4 * ALIGN, ALIGN * 8)
        await volume.flush("v")
        version = await volume.put_manifest("v", b"m", NO_VERSION)
        used = await volume.used_size("v")
        await volume.aclose()
        other = reopen()
        assert await other.list() == ["v"]
        assert await get(other, len(data), 4096) == data
        assert await other.get_manifest("v") == Manifest(b"m", version)
        assert await other.used_size("v") == used
        with pytest.raises(AlreadyExists):
            await other.create("v")
        await other.delete("v")
        assert await other.list() == []
        await other.aclose()

    async def test_an_instance_sees_what_another_writes_later(self, volume: Backend, reopen: Reopen | None) -> None:
        if reopen is None:
            pytest.skip("no second instance")
        other = reopen()
        a, b, c, d = (noise(2 * BLOCK, number) for number in range(4))
        await put(volume, a, 0)
        assert await get(other, 2 * BLOCK, 0) == a
        assert await get(other, BLOCK, 2 * BLOCK) == b""
        await put(volume, b, 2 * BLOCK)
        assert await get(other, 9 * BLOCK, BLOCK) == a[BLOCK:] + b
        await put(volume, d, 12 * BLOCK)
        await put(volume, c, 8 * BLOCK)
        assert await get(other, 2 * BLOCK, 8 * BLOCK) == c
        await volume.create("w")
        assert await other.list() == ["v", "w"]
        await other.delete("w")
        assert await volume.list() == ["v"]
        await other.aclose()

    async def test_what_is_known_of_the_store_is_no_less_than_nothing(self, volume: Backend) -> None:
        capacity = volume.capacity("v")
        assert capacity is None or 0 <= capacity.free <= capacity.total

    async def test_closing_twice_is_harmless(self, volume: Backend) -> None:
        await put(volume, noise(BLOCK), 0)
        await volume.aclose()
        await volume.aclose()

    # Cancellation

    @pytest.mark.parametrize("call", ["create", "list", *CALLS])
    @pytest.mark.parametrize("when", ["before", "during"])
    async def test_a_cancelled_call_leaves_the_backend_usable(self, backend: Backend, call: str, when: str) -> None:
        await backend.create("v")
        await put(backend, b"a" * 4096, 0)
        await backend.flush("v")
        calls = CALLS | {"create": lambda b, _: b.create("w"), "list": lambda b, _: b.list()}
        with trio.CancelScope() as scope:
            if when == "before":
                scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls[call], backend, "v")
                if when == "during":
                    await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            # It may have had its effect or not; a repetition makes it certain that it had.
            with contextlib.suppress(VolumeNotFound, AlreadyExists, InvalidArgument, ManifestConflict):
                await calls[call](backend, "v")
            if "v" not in await backend.list():
                await backend.create("v")
            await put(backend, b"b" * 4096, ALIGN)
            await backend.flush("v")
            assert await get(backend, 4096, ALIGN) == b"b" * 4096
            manifest = await backend.get_manifest("v")
            await backend.put_manifest("v", b"n", manifest.version)
            assert (await backend.get_manifest("v")).data == b"n"
            await backend.delete("v")
