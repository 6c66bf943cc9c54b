# ruff: noqa: D102 - the names of the tests are the sentences
"""Space: given back."""

import random

from fusevol.backends.base import Backend
from fusevol.testing.backends.base import ALIGN, BLOCK, Rules, get, noise, put

__all__ = ["SpaceRules"]


class SpaceRules(Rules):
    """Of discards, and of what is used."""

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
