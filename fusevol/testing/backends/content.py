# ruff: noqa: D102 - the names of the tests are the sentences
"""Bytes: written and read."""

import pytest
import trio

from fusevol.backends.base import NO_VERSION, Backend
from fusevol.errors import InvalidArgument
from fusevol.testing.backends.base import AROUND, BLOCK, KIB, MIB, Rules, get, noise, put

__all__ = ["ContentRules"]


class ContentRules(Rules):
    """Of reading and writing."""

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
