"""A check names each broken rule of a filesystem's layout, and nothing else; a sound one has no findings."""

import os
import random
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from fusevol.backends.memory import MemoryBackend
from fusevol.fs import Caller, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.acl import ACCESS, DEFAULT
from fusevol.fs.check import CheckReport, check_filesystem
from fusevol.fs.damage import name_damage
from fusevol.fs.layout import BLOCK, DATA_BLOCK, DATABASE, ROOT
from fusevol.log import LogVolume, create_volume, open_volume
from fusevol.log.format import BLOCK_SHIFT
from tests.unit.operating import operate

ROOT_USER = Caller(0, 0)
Break = Callable[[Filesystem, dict[str, int]], Awaitable[None]]


async def sample(filesystem: Filesystem) -> dict[str, int]:
    """One file of each kind; their inode numbers by name."""

    def make(name: str, mode: int, parent: int = ROOT) -> int:
        return filesystem.create(parent, name.encode(), mode | 0o644, ROOT_USER).ino

    made = {"dir": make("dir", stat.S_IFDIR), "other": make("other", stat.S_IFDIR), "fifo": make("fifo", stat.S_IFIFO)}
    made["sub"] = make("sub", stat.S_IFDIR, made["dir"])
    made["small"] = make("small", stat.S_IFREG, made["sub"])
    await filesystem.write(made["small"], b"inline", 0)
    for name in ("big", "second"):
        made[name] = make(name, stat.S_IFREG, made["dir"])
        await filesystem.write(made[name], random.Random(name).randbytes(3 * BLOCK), 0)
        await filesystem.write(made[name], random.Random(name).randbytes(BLOCK), 5 * BLOCK)
    filesystem.link(made["small"], ROOT, b"twin")
    made["link"] = filesystem.symlink(ROOT, b"link", b"dir/big", ROOT_USER).ino
    filesystem.setxattr(made["big"], b"user.note", b"kept")
    await filesystem.sync()
    return made


def sql(statement: str, *bindings: object) -> Break:
    """Run a statement; a binding that is a name of the sample stands for its inode number."""

    async def run(filesystem: Filesystem, made: dict[str, int]) -> None:
        filesystem._database.begin()
        values = tuple(made.get(item, item) if isinstance(item, str) else item for item in bindings)
        filesystem._database.run(statement, values)  # type: ignore[arg-type]

    return run


def both(first: Break, second: Break) -> Break:
    async def run(filesystem: Filesystem, made: dict[str, int]) -> None:
        await first(filesystem, made)
        await second(filesystem, made)

    return run


async def broken_volume(volume: LogVolume, damage: Break) -> CheckReport:
    filesystem = await load_filesystem(volume)
    made = await sample(filesystem)
    filesystem.close()
    filesystem = await load_filesystem(volume)
    await damage(filesystem, made)
    filesystem._database.commit()
    filesystem._database.write_out()
    filesystem.close()
    volume.abandon()
    return await check_filesystem(volume, deep=True)


BIG, SMALL, DIR, SUB, LINK = "/dir/big", "/twin", "/dir", "/dir/sub", "/link"
FIRST = DATA_BLOCK

#: What is broken, how, the findings as (kind, path).
CASES: dict[str, tuple[Break, set[tuple[str, str | None]]]] = {
    "name of no inode": (
        sql("INSERT INTO entry VALUES (1, CAST('ghost' AS BLOB), 999, 8, 2000)"),
        {("name-inode", "/ghost"), ("cookie", "/ghost")},
    ),
    "wrong kind": (sql("UPDATE entry SET kind = 10 WHERE ino = ?", "big"), {("name-kind", BIG)}),
    "cookie": (sql("UPDATE entry SET cookie = 5000 WHERE ino = ?", "big"), {("cookie", BIG)}),
    "cookie zero": (sql("UPDATE entry SET cookie = 0 WHERE ino = ?", "big"), {("cookie", BIG)}),
    "name with slash": (
        sql("UPDATE entry SET name = CAST('a/b' AS BLOB) WHERE ino = ?", "big"),
        {("name", "/dir/a/b")},
    ),
    "name of text": (sql("UPDATE entry SET name = 'big' WHERE ino = ?", "big"), {("name", BIG)}),
    "name of dots": (sql("UPDATE entry SET name = CAST('..' AS BLOB) WHERE ino = ?", "big"), {("name", "/dir/..")}),
    "name too long": (
        sql("UPDATE entry SET name = zeroblob(0) || CAST(hex(zeroblob(128)) AS BLOB) WHERE ino = ?", "big"),
        {("name", "/dir/" + "0" * 256)},
    ),
    "unreachable file": (sql("DELETE FROM entry WHERE ino = ?", "big"), {("unreachable", None)}),
    "unreachable directory": (
        sql("DELETE FROM entry WHERE ino = ?", "other"),
        {("unreachable", None), ("link-count", "/")},
    ),
    "links of a file": (sql("UPDATE inode SET nlink = 3 WHERE ino = ?", "small"), {("link-count", SMALL)}),
    "links of a directory": (sql("UPDATE inode SET nlink = 9 WHERE ino = ?", "dir"), {("link-count", DIR)}),
    "file with a parent": (sql("UPDATE inode SET parent = 1 WHERE ino = ?", "big"), {("directory-parent", BIG)}),
    "directory elsewhere": (
        sql("UPDATE inode SET parent = ? WHERE ino = ?", "other", "sub"),
        {("directory-parent", SUB)},
    ),
    "second name of a directory": (
        sql("INSERT INTO entry VALUES (?, CAST('again' AS BLOB), ?, 4, 2)", "other", "sub"),
        {("directory-names", SUB), ("directory-parent", "/other/again"), ("link-count", "/other")},
    ),
    "name in a file": (
        sql("UPDATE entry SET parent = ? WHERE ino = ?", "second", "big"),
        {("name-directory", None)},
    ),
    "name in nothing": (sql("UPDATE entry SET parent = 888 WHERE ino = ?", "big"), {("name-directory", None)}),
    "name of the root": (
        sql("INSERT INTO entry VALUES (?, CAST('up' AS BLOB), 1, 4, 3)", "other"),
        {("root", "/other/up"), ("link-count", "/other")},
    ),
    "root elsewhere": (sql("UPDATE inode SET parent = ? WHERE ino = 1", "dir"), {("root", "/")}),
    "no such mode": (
        sql("UPDATE inode SET mode = 420 WHERE ino = ?", "fifo"),
        {("mode", "/fifo"), ("name-kind", "/fifo")},
    ),
    "inode number": (sql("UPDATE counter SET value = 3 WHERE key = 'next_ino'"), {("inode-number", "*")}),
    "no counter": (sql("DELETE FROM counter WHERE key = 'size'"), {("counter", None)}),
    "unknown counter": (sql("INSERT INTO counter VALUES ('odd', 1)"), {("counter", None)}),
    "inline content cut": (sql("UPDATE inode SET data = x'00' WHERE ino = ?", "small"), {("inline", SMALL)}),
    "inline content too long": (
        sql("UPDATE inode SET data = zeroblob(3000), size = 3000 WHERE ino = ?", "small"),
        {("inline", SMALL)},
    ),
    "inline and extents": (
        sql("UPDATE inode SET data = zeroblob(10) WHERE ino = ?", "big"),
        {("inline-and-extents", BIG)},
    ),
    "content of a fifo": (sql("UPDATE inode SET data = x'00' WHERE ino = ?", "fifo"), {("inline", "/fifo")}),
    "symlink size": (sql("UPDATE inode SET size = 3 WHERE ino = ?", "link"), {("symlink", LINK)}),
    "symlink without target": (sql("UPDATE inode SET data = NULL WHERE ino = ?", "link"), {("symlink", LINK)}),
    "negative size": (sql("UPDATE inode SET size = -1 WHERE ino = ?", "big"), {("size", BIG)}),
    "negative owner": (sql("UPDATE inode SET uid = -5 WHERE ino = ?", "big"), {("uid", BIG)}),
    "time out of range": (sql("UPDATE inode SET mtime = 1e30 WHERE ino = ?", "big"), {("time", BIG)}),
    "blocks": (sql("UPDATE inode SET blocks = 7 WHERE ino = ?", "big"), {("blocks", BIG), ("counter", None)}),
    "number of files": (sql("UPDATE counter SET value = 3 WHERE key = 'files'"), {("counter", None)}),
    "number of blocks": (sql("UPDATE counter SET value = 3 WHERE key = 'blocks'"), {("counter", None)}),
    "extents overlap": (
        sql("UPDATE extent SET block = 2 WHERE ino = ? AND block = 5", "big"),
        {("extent-overlap", BIG)},
    ),
    "cross-linked": (
        sql(f"UPDATE extent SET address = {FIRST} WHERE ino = ? AND block = 5", "second"),
        {("cross-linked", BIG), ("leak", None)},
    ),
    "extent of metadata": (
        sql("UPDATE extent SET address = 300 WHERE ino = ? AND block = 5", "big"),
        {("extent-address", BIG), ("leak", None)},
    ),
    "extent behind the end": (
        sql("UPDATE extent SET address = address + 100000 WHERE ino = ? AND block = 5", "big"),
        {("extent-address", BIG), ("leak", None)},
    ),
    "extent of nothing": (
        sql("INSERT INTO extent VALUES (?, 9, ?, 0)", "big", FIRST),
        {("extent-range", BIG)},
    ),
    "extents of no inode": (
        sql("UPDATE extent SET ino = 777 WHERE ino = ? AND block = 5", "big"),
        {("extent-inode", None), ("blocks", BIG)},
    ),
    "extents of a fifo": (
        sql("UPDATE extent SET ino = ? WHERE ino = ? AND block = 5", "fifo", "big"),
        {("extent-kind", "/fifo"), ("blocks", BIG)},
    ),
    "attribute of no inode": (sql("UPDATE xattr SET ino = 666"), {("xattr-inode", None)}),
    "attribute without namespace": (sql("UPDATE xattr SET name = CAST('x' AS BLOB)"), {("xattr", BIG)}),
    "malformed acl": (sql("UPDATE xattr SET name = ?", ACCESS), {("acl", BIG)}),
    "default acl of a file": (
        sql(
            "UPDATE xattr SET name = ?, value = x'02000000010006000000000004000400000000002000040000000000'",
            DEFAULT,
        ),
        {("acl", BIG)},
    ),
    "acl and mode": (
        sql("UPDATE xattr SET name = ?, value = x'02000000010007000000000004000400000000002000040000000000'", ACCESS),
        {("acl", BIG)},
    ),
    "discard in use": (sql("INSERT INTO discard VALUES (?, 1)", FIRST), {("discard-in-use", BIG)}),
    "discard twice": (
        both(
            sql("UPDATE counter SET value = value + 10 WHERE key = 'next_block'"),
            sql(f"INSERT INTO discard VALUES ({FIRST + 10}, 3), ({FIRST + 12}, 1)"),
        ),
        {("discard", None)},
    ),
    "discard of metadata": (sql("INSERT INTO discard VALUES (256, 1)"), {("discard", None)}),
    "table missing": (sql("DROP TABLE discard"), {("schema", None)}),
    "index missing": (sql("DROP INDEX orphan"), {("schema", None)}),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_broken_rule_is_named_and_nothing_else(case: str) -> None:
    damage, expected = CASES[case]
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        report = await broken_volume(volume, damage)
    found = {(finding.kind, finding.path) for finding in report.findings}
    kinds = {kind for kind, path in expected if path == "*"}
    exact = {(kind, path) for kind, path in expected if path != "*"}
    assert {item for item in found if item[0] not in kinds} == exact, [str(item) for item in report.findings]
    assert kinds <= {kind for kind, _ in found}


async def test_a_sound_filesystem_has_no_findings_live_read_only_and_in_a_snapshot() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        assert not (await check_filesystem(volume)).formatted
        async with open_filesystem(volume) as filesystem:
            await sample(filesystem)
            await filesystem.snapshot("s")
            live = await check_filesystem(volume, deep=True)
            async with volume.view("s") as view:
                snapshot = await check_filesystem(view, deep=True)
    async with open_volume(backend, "v", read_only=True) as volume:
        reading = await check_filesystem(volume, deep=True)
    for report in (live, snapshot, reading):
        assert report.findings == []
        assert (report.formatted, report.inodes, report.entries) == (True, 9, 9)
        assert (report.extents, report.verified) == (4, 8)


async def test_directories_in_each_other_are_a_cycle() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")

    async def tie(filesystem: Filesystem, made: dict[str, int]) -> None:
        await sql("UPDATE entry SET parent = ? WHERE ino = ?", "sub", "dir")(filesystem, made)
        await sql("UPDATE inode SET parent = ? WHERE ino = ?", "sub", "dir")(filesystem, made)
        await sql("UPDATE inode SET nlink = nlink - 1 WHERE ino = 1")(filesystem, made)
        await sql("UPDATE inode SET nlink = nlink + 1 WHERE ino = ?", "sub")(filesystem, made)

    async with open_volume(backend, "v") as volume:
        report = await broken_volume(volume, tie)
    assert [finding.kind for finding in report.findings] == ["cycle"]
    assert "2 in 5 in 2" in report.findings[0].what


async def test_blocks_that_nobody_owns_are_a_warning_that_says_where() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        await sample(filesystem)
        at = DATA_BLOCK + 100
        await volume.write(bytes(2 * BLOCK), at << BLOCK_SHIFT)
        await filesystem.sync()
        report = await check_filesystem(volume)
    assert report.errors == []
    assert report.leaked == 2
    assert [str(warning) for warning in report.warnings] == [
        f"2 blocks from {at} hold data that nobody owns; expected: nothing there"
    ]


def flip(backend: MemoryBackend, address: int) -> None:
    space = backend.spaces["v"]
    byte = space.read(1, address << BLOCK_SHIFT)
    space.write(bytes([byte[0] ^ 1]), address << BLOCK_SHIFT)


async def address_of(volume: LogVolume, block: int) -> int:
    leaf = await volume.path.live.leaf(block >> 10)
    return int(leaf.words[block & 1023])


async def test_damaged_data_are_named_by_file_and_position() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        await sample(filesystem)
        await filesystem.snapshot("s")
        flip(backend, await address_of(volume, DATA_BLOCK + 1))
        flip(backend, await address_of(volume, DATA_BLOCK + 3))
        assert (await check_filesystem(volume)).findings == []
        report = await check_filesystem(volume, deep=True)
        named = await name_damage(volume, await volume.scrub())
    assert {finding.kind for finding in report.findings} == {"data"}
    assert [str(finding).split(" are ")[0] for finding in report.findings] == [
        f"{BIG}: bytes 4096 to 8191",
        f"{BIG}: bytes 20480 to 24575",
    ]
    assert sorted((item.holder, item.path, item.offset, item.size) for item in named) == [
        ("live", BIG, BLOCK, BLOCK),
        ("live", BIG, 5 * BLOCK, BLOCK),
        ("s", BIG, BLOCK, BLOCK),
        ("s", BIG, 5 * BLOCK, BLOCK),
    ]


async def test_damage_that_only_a_snapshot_has_is_named_there() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        made = await sample(filesystem)
        await filesystem.snapshot("s")
        flip(backend, await address_of(volume, DATA_BLOCK))
        filesystem.rename(made["dir"], b"big", ROOT, b"moved")
        await filesystem.write(made["big"], os.urandom(BLOCK), 0)
        await filesystem.sync()
        named = await name_damage(volume, await volume.scrub())
    assert [(item.holder, item.path, item.offset) for item in named] == [("s", BIG, 0)]


async def test_a_damaged_page_of_metadata_is_a_finding_not_an_error() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        async with open_filesystem(volume) as filesystem:
            for number in range(2000):
                filesystem.create(ROOT, b"f%d" % number, stat.S_IFREG | 0o644, ROOT_USER)
        for page in (1, 9, 20):
            flip(backend, await address_of(volume, (DATABASE >> BLOCK_SHIFT) + page))
        report = await check_filesystem(volume, deep=True)
        scrubbed = await name_damage(volume, await volume.scrub())
        volume.abandon()
    assert report.errors
    assert {finding.kind for finding in report.errors} <= {"database", "metadata", "schema"}
    assert any("does not match its checksum" in item.what or "damaged" in item.what for item in report.errors)
    assert {item.path for item in scrubbed} == {None}
    assert all("metadata" in item.what for item in scrubbed)


async def test_a_damaged_or_missing_superblock_is_named() -> None:
    for data in (b"\1" * BLOCK, bytes(BLOCK)):
        backend = MemoryBackend()
        await create_volume(backend, "v")
        async with open_volume(backend, "v") as volume:
            async with open_filesystem(volume) as filesystem:
                await sample(filesystem)
            await volume.write(data, 0)
            report = await check_filesystem(volume)
        assert [finding.kind for finding in report.findings] == ["superblock"]


async def test_a_volume_that_holds_something_else_is_said_to_and_no_more() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        await volume.write(b"x" * BLOCK, 0)
        report = await check_filesystem(volume)
    assert [finding.kind for finding in report.findings] == ["superblock"]
    assert not report.formatted


@pytest.mark.parametrize("seed", range(8))
async def test_after_random_operations_and_crashes_there_are_no_findings_and_no_leaks(seed: int) -> None:
    rng, backend = random.Random(seed), MemoryBackend()
    await create_volume(backend, "v")
    for life in range(5):
        async with open_volume(backend, "v") as volume:
            filesystem, held = await load_filesystem(volume), list[int]()
            filesystem.resize(rng.choice((0, 300 * BLOCK)))
            assert (await check_filesystem(volume, deep=True)).findings == []
            for step in range(120):
                with suppress(OSError):  # a name is taken, or missing
                    await operate(filesystem, rng, held)
                if step % 40 == 20:
                    await rng.choice((filesystem.sync, volume.checkpoint))()
                if step == 60:
                    await filesystem.snapshot(f"s{life}")
            if rng.random() < 0.5:
                volume.abandon()
            else:
                await filesystem.sync()
                report = await check_filesystem(volume, deep=True)
                assert report.findings == [], [str(finding) for finding in report.findings]
            filesystem.close()
    async with open_volume(backend, "v", read_only=True) as volume:
        for snapshot in volume.snapshots():
            async with volume.view(snapshot.name) as view:
                report = await check_filesystem(view, deep=True)
                assert report.errors == [], [str(finding) for finding in report.errors]


async def test_totals_that_an_earlier_version_did_not_keep_are_counted_once_and_kept() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    forget = sql("DELETE FROM counter WHERE key IN ('files', 'blocks')")
    async with open_volume(backend, "v") as volume:
        assert (await broken_volume(volume, forget)).findings == []
    async with open_volume(backend, "v") as volume:
        async with open_filesystem(volume) as filesystem:
            before = filesystem.statfs()
            assert (before.files - before.files_free, filesystem.used_size) == (9, 8 * BLOCK)
        assert (await check_filesystem(volume)).findings == []
        for idle in (False, True):
            async with open_filesystem(volume) as filesystem:
                assert [filesystem._database.counter(key, 0) for key in ("files", "blocks")] == [9, 8]
                if not idle:
                    with filesystem._database.changing():
                        filesystem._database.run("DELETE FROM counter WHERE key IN ('files', 'blocks')")
                    await filesystem.sync()
            async with open_filesystem(volume):
                pass  # to count, and to keep it, though there is nothing else to commit
