"""What fallocate(2) sets aside and lets go of, in the filesystem itself."""

import pytest

from fusevol.fs import Changes
from fusevol.fs.layout import BLOCK, SIZE_MAX
from tests.unit.test_fs_edges import fresh, make

KEEP_SIZE, PUNCH_HOLE = 1, 3
TIB = 1 << 40


async def test_a_file_cannot_be_preallocated_beyond_the_largest_size() -> None:
    async with fresh() as (fs, _):
        ino = make(fs, b"f")
        with pytest.raises(OSError, match="EFBIG"):
            await fs.fallocate(ino, 1, SIZE_MAX, 1)


async def test_where_nobody_knows_what_the_store_has_room_for_a_tebibyte_at_most_is_set_aside_at_once() -> None:
    """Addresses do not come back: who sets aside without end, and gives it back, would use up those of the volume."""
    async with fresh() as (fs, _):
        ino = make(fs, b"f")
        with pytest.raises(OSError, match="ENOSPC"):
            await fs.fallocate(ino, 1, 0, TIB + 1)
        await fs.fallocate(ino, 1, 0, TIB)
        await fs.fallocate(ino, 1, TIB, TIB)
        assert fs.get(ino).blocks * BLOCK == 2 * TIB
        await fs.write(make(fs, b"other"), b"x" * 5000, 0)


async def test_what_is_set_aside_beyond_the_end_goes_with_a_truncation_to_the_same_size() -> None:
    async with fresh() as (fs, _):
        for content in (b"", b"x" * 5000):
            ino = make(fs, b"f%d" % len(content))
            await fs.write(ino, content, 0)
            await fs.fallocate(ino, KEEP_SIZE, 0, 100 * BLOCK)
            assert fs.get(ino).blocks == 100
            await fs.setattr(ino, Changes(mtime=10**18))
            await fs.setattr(ino, Changes(size=len(content)))
            assert fs.get(ino).mtime == 10**18, "the content is the same"
            assert fs.get(ino).blocks == -(-len(content) // BLOCK)
            assert bytes(await fs.read(ino, 1 << 20, 0)) == content


async def test_many_holes_are_filled_at_once_and_many_extents_let_go_of() -> None:
    async with fresh() as (fs, _):
        ino = make(fs, b"f")
        for block in range(0, 400, 2):
            await fs.write(ino, b"x" * BLOCK, block * BLOCK)
        await fs.fallocate(ino, PUNCH_HOLE, 101 * BLOCK, 200 * BLOCK)
        await fs.fallocate(ino, KEEP_SIZE, 0, 410 * BLOCK)
        assert fs.get(ino).blocks == 410
        expected = b"".join(bytes(BLOCK) if n % 2 or 101 <= n < 301 else b"x" * BLOCK for n in range(399))
        assert bytes(await fs.read(ino, 1 << 30, 0)) == expected
        await fs.sync()
        await fs.fallocate(ino, PUNCH_HOLE, 0, 1 << 30)
        assert (fs.get(ino).blocks, fs.used_size) == (0, 0)
        await fs.sync()
