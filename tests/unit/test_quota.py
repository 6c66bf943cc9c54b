"""A volume's size bounds what its files hold, and what names, attributes and small files take up as well."""

import errno
import os
import stat
from collections.abc import Awaitable, Callable

import pytest

from fusevol.fs import Changes, Filesystem, acl, open_filesystem
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.log import open_volume
from tests.unit.test_fs_edges import ME, fresh, make, new_volume

MIB = 1 << 20
LIMIT = 4 * MIB


async def small_file(fs: Filesystem, number: int) -> None:
    await fs.write(make(fs, b"file%d" % number), os.urandom(1500), 0)


async def attribute(fs: Filesystem, number: int) -> None:
    fs.setxattr(make(fs, b"file%d" % number), b"user.a", os.urandom(5000))


async def empty_file(fs: Filesystem, number: int) -> None:
    make(fs, b"file%d" % number)


async def symlink(fs: Filesystem, number: int) -> None:
    fs.symlink(ROOT, b"file%d" % number, b"x" * 1000, ME)


async def small_attribute(fs: Filesystem, number: int) -> None:
    fs.setxattr(make(fs, b"file%d" % number), b"user.a", os.urandom(200))


async def hard_link(fs: Filesystem, number: int) -> None:
    first = number - number % 1000
    if number == first:
        make(fs, b"file%d" % number)
    else:
        fs.link(fs.lookup(ROOT, b"file%d" % first).ino, ROOT, b"%0200d" % number)


async def fill(fs: Filesystem, add: Callable[[Filesystem, int], Awaitable[None]], first: int = 0) -> int:
    """Add until there is no room; how many there are then."""
    for number in range(first, 100_000):
        try:
            await add(fs, number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError


@pytest.mark.parametrize("add", [small_file, attribute, small_attribute, empty_file, symlink])
async def test_what_has_no_blocks_cannot_take_up_more_than_the_volumes_size(
    add: Callable[[Filesystem, int], Awaitable[None]],
) -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        fs.resize(LIMIT)
        count = await fill(fs, add)
        await fs.sync()
        live = (await volume.usage()).live
        # The allowance goes on top; what is estimated may be a little off until there is a commit.
        assert LIMIT < live < LIMIT + 2 * MIB, (count, live)
        assert fs.statfs().free == 0
        with pytest.raises(OSError, match="ENOSPC"):
            await fs.write(fs.lookup(ROOT, b"file0").ino, bytes(2 * BLOCK), 0)
        for number in range(count // 2):
            inode = fs.lookup(ROOT, b"file%d" % number)
            fs.unlink(ROOT, b"file%d" % number)
            fs.forget(inode.ino)
        # What was deleted makes room at once, and as often as one likes.
        again = await fill(fs, add, count + 1)
        assert again - count > count // 4
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        assert fs.statfs().free == 0
        assert await fill(fs, add, again + 1) < again + 100


async def test_names_of_one_file_cannot_take_up_more_either() -> None:
    async with fresh() as (fs, volume):
        fs.resize(LIMIT)
        await fill(fs, hard_link)
        await fs.sync()
        assert (await volume.usage()).live < LIMIT + 2 * MIB


async def test_small_files_that_are_made_longer_have_holes_where_the_size_is_used_up() -> None:
    async with fresh() as (fs, volume):
        fs.resize(LIMIT)
        count = await fill(fs, empty_file)
        for number in range(0, count, 5):
            ino = fs.lookup(ROOT, b"file%d" % number).ino
            await fs.setattr(ino, Changes(size=2000))
            assert bytes(await fs.read(ino, 3000, 0)) == bytes(2000)
        await fs.sync()
        assert (await volume.usage()).live < LIMIT + 2 * MIB


async def test_what_is_there_can_be_overwritten_and_attributes_of_access_set_where_the_size_is_used_up() -> None:
    async with fresh() as (fs, _):
        fs.resize(LIMIT)
        large = make(fs, b"large")
        await fs.write(large, os.urandom(100 * BLOCK), 0)
        await fill(fs, small_file)
        await fs.sync()
        small = fs.lookup(ROOT, b"file0").ino
        await fs.write(small, b"again", 100)
        await fs.write(large, b"again", 100)
        assert bytes(await fs.read(small, 5, 100)) == bytes(await fs.read(large, 5, 100)) == b"again"
        with pytest.raises(OSError, match="ENOSPC"):
            await fs.write(small, b"more", 1500)
        fs.setxattr(small, acl.ACCESS, bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff"))


async def test_small_files_that_were_deleted_make_room_for_data_at_once() -> None:
    async with fresh() as (fs, _):
        fs.resize(LIMIT)
        large = make(fs, b"large")
        await fs.write(large, os.urandom(BLOCK), 0)
        count = await fill(fs, small_file)
        await fs.sync()
        for number in range(count):
            inode = fs.lookup(ROOT, b"file%d" % number)
            fs.unlink(ROOT, b"file%d" % number)
            fs.forget(inode.ino)
        await fs.write(large, bytes(MIB), BLOCK)


async def test_what_is_made_and_deleted_between_two_commits_is_not_taken_for_growth() -> None:
    async with fresh() as (fs, _):
        fs.resize(LIMIT)
        for number in range(5 * LIMIT // 2000):
            await small_file(fs, number)
            inode = fs.lookup(ROOT, b"file%d" % number)
            fs.unlink(ROOT, b"file%d" % number)
            fs.forget(inode.ino)
        assert fs.statfs().free == LIMIT // BLOCK


async def test_a_few_names_and_small_files_do_not_count_so_that_all_of_the_size_is_for_data() -> None:
    async with fresh() as (fs, _):
        fs.resize(LIMIT)
        for number in range(100):
            await small_file(fs, number)
        await fs.sync()
        assert fs.statfs().free == LIMIT // BLOCK
        ino = make(fs, b"large")
        await fs.write(ino, os.urandom(LIMIT), 0)
        fs.create(ROOT, b"directory", stat.S_IFDIR | 0o755, ME)
        await small_file(fs, 100)
        with pytest.raises(OSError, match="ENOSPC"):
            await fs.write(ino, bytes(1), LIMIT)


async def test_a_volume_without_a_size_takes_any_number_of_small_files() -> None:
    async with fresh() as (fs, _):
        for number in range(5000):
            await small_file(fs, number)
        await fs.sync()
        fs.resize(LIMIT)
        assert fs.statfs().free == 0
        with pytest.raises(OSError, match="ENOSPC"):
            make(fs, b"another")
        fs.resize(0)
        make(fs, b"another")
