"""Files of a volume hold what byte arrays would, through any order of writes, cuts, holes, syncs and crashes."""

import errno
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusevol.backends.memory import MemoryBackend
from fusevol.fs import Caller, Changes, Filesystem, load_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.log import create_volume, open_volume

FILES = 3
#: Around the limit of inline content, the borders of blocks, and where reservations begin (256 blocks).
EDGES = (0, 1, 1999, 2000, 2001, 4095, 4096, 4097, 8192, 12287, 12288, 40000, 256 * BLOCK, 300 * BLOCK + 5)
QUOTA = 700 * BLOCK

KEEP_SIZE, PUNCH, ZERO = 1, 2, 16

positions = st.one_of(st.sampled_from(EDGES), st.integers(0, 40_000))
lengths = st.one_of(st.sampled_from((1, 100, 2000, 2001, 4096, 8192, 33 * BLOCK)), st.integers(1, 20_000))
file = st.integers(0, FILES - 1)
operations = st.one_of(
    st.tuples(st.just("write"), file, positions, lengths, st.integers(1, 255)),
    st.tuples(st.just("write"), file, positions, lengths, st.integers(1, 255)),
    st.tuples(st.just("truncate"), file, positions),
    st.tuples(st.just("fallocate"), file, st.sampled_from((0, 1, 3, 16, 17)), positions, lengths),
    st.tuples(st.just("read"), file, positions, lengths),
    st.tuples(st.sampled_from(("sync", "reopen", "crash", "checkpoint", "snapshot", "replace")), file),
)


@dataclass
class World:
    """The files as byte arrays. durable: as they were at the last sync."""

    files: list[bytearray] = field(default_factory=lambda: [bytearray() for _ in range(FILES)])
    durable: list[bytes] = field(default_factory=lambda: [b""] * FILES)

    def sync(self) -> None:
        self.durable = [bytes(data) for data in self.files]

    def crash(self) -> None:
        self.files = [bytearray(data) for data in self.durable]


def put(data: bytearray, offset: int, part: bytes) -> None:
    if offset + len(part) > len(data):
        data.extend(bytes(offset + len(part) - len(data)))
    data[offset : offset + len(part)] = part


async def change(filesystem: Filesystem, world: World, op: tuple[object, ...]) -> None:
    kind, number, *args = op
    assert isinstance(number, int)
    name, data = b"%d" % number, world.files[number]
    ino = filesystem.lookup(ROOT, name).ino
    numbers: list[int] = [arg for arg in args if isinstance(arg, int)]
    if kind == "write":
        offset, length, byte = numbers
        part = bytes((byte + i) % 255 + 1 for i in range(min(length, 64))) * (length // 64 + 1)
        await filesystem.write(ino, part[:length], offset)
        put(data, offset, part[:length])
    elif kind == "truncate":
        (size,) = numbers
        await filesystem.setattr(ino, Changes(size=size))
        data[:] = data[:size].ljust(size, b"\0")
    elif kind == "fallocate":
        mode, offset, length = numbers
        await filesystem.fallocate(ino, mode, offset, length)
        if mode & (PUNCH | ZERO):
            stop = min(offset + length, len(data))
            if offset < stop:
                data[offset:stop] = bytes(stop - offset)
        if not mode & KEEP_SIZE and offset + length > len(data):
            data.extend(bytes(offset + length - len(data)))
    elif kind == "read":
        offset, length = numbers
        assert bytes(await filesystem.read(ino, length, offset)) == data[offset : offset + length]
    elif kind == "replace":
        filesystem.unlink(ROOT, name)
        filesystem.forget(ino)
        make(filesystem, number)
        data.clear()


def make(filesystem: Filesystem, number: int) -> None:
    filesystem.create(ROOT, b"%d" % number, stat.S_IFREG | 0o644, Caller(0, 0))


async def live(ops: Iterable[tuple[object, ...]], quota: int = 0) -> None:
    backend, world = MemoryBackend(), World()
    await create_volume(backend, "v")
    queue = list(ops)
    first, snapshots = True, 0
    while queue or first:
        async with open_volume(backend, "v") as volume:
            filesystem = await load_filesystem(volume)
            if first:
                filesystem.resize(quota)
                for number in range(FILES):
                    make(filesystem, number)
                await filesystem.sync()
                first = False
            await compare(filesystem, world)
            while queue:
                op = queue.pop(0)
                if op[0] in ("reopen", "crash"):
                    break
                if op[0] in ("sync", "checkpoint", "snapshot"):
                    if op[0] == "checkpoint":
                        await volume.checkpoint()
                    elif op[0] == "snapshot":
                        snapshots += 1
                        await filesystem.snapshot(f"s{snapshots}")
                    else:
                        await filesystem.sync()
                    world.sync()
                    continue
                try:
                    await change(filesystem, world, op)
                except OSError as error:
                    if error.errno != errno.ENOSPC or not quota:
                        raise
                    await adopt(filesystem, world)
            else:
                op = ("reopen",)
            await compare(filesystem, world)
            if op[0] == "crash":
                volume.abandon()
                world.crash()
            else:
                await filesystem.sync()
                world.sync()
                await sound(volume)
            filesystem.close()
        async with open_volume(backend, "v") as volume:
            filesystem = await load_filesystem(volume)
            await compare(filesystem, world)
            await sound(volume)
            filesystem.close()


async def compare(filesystem: Filesystem, world: World) -> None:
    for number, data in enumerate(world.files):
        inode = filesystem.lookup(ROOT, b"%d" % number)
        assert inode.size == len(data)
        assert bytes(await filesystem.read(inode.ino, len(data) + 1, 0)) == data


async def adopt(filesystem: Filesystem, world: World) -> None:
    """After an operation that failed half way, what it did to its file is right, as long as it lasts."""
    for number, data in enumerate(world.files):
        inode = filesystem.lookup(ROOT, b"%d" % number)
        data[:] = bytes(await filesystem.read(inode.ino, inode.size, 0))


async def sound(volume: object) -> None:
    report = await check_filesystem(volume, deep=True)  # type: ignore[arg-type]
    assert not report.findings, [str(finding) for finding in report.findings]


@given(st.lists(operations, max_size=25))
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_files_hold_what_byte_arrays_would(ops: list[tuple[object, ...]]) -> None:
    trio.run(live, ops)


@given(st.lists(operations, max_size=25), st.integers(1, 80))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_file_out_of_quota_is_sound_and_stays_what_it_was_found_as(ops: list[tuple[object, ...]], quota: int) -> None:
    trio.run(live, ops, quota * BLOCK)


@pytest.mark.parametrize("ending", ["crash", "reopen"])
def test_a_file_with_a_reservation_grows_after_it_was_opened_again(ending: str) -> None:
    big = 257 * BLOCK
    ops: list[tuple[object, ...]] = [("write", 0, 0, big, 1), ("write", 0, big, 5000, 2), ("sync", 0)]
    ops += [("write", 0, big + 5000, 9000, 3), (ending, 0), ("write", 0, big + 5000, 20000, 4), ("truncate", 0, big)]
    trio.run(live, ops)
