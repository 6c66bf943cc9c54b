"""Checking a filesystem: every rule of its layout, with the files that break one by name. Nothing is changed."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import apsw

from fusevol.errors import CorruptData, FusevolError
from fusevol.fs.checkfiles import check_addresses, check_attributes, check_inodes
from fusevol.fs.checknames import check_links, check_names, check_tree
from fusevol.fs.database import read_superblock
from fusevol.fs.findings import CheckProgress, CheckReport, Finding, MetadataReader, Report
from fusevol.fs.layout import BLOCK, DATA_BLOCK, DATABASE, SCHEMA, TOTAL_BLOCKS, TOTAL_FILES
from fusevol.log import LogVolume, SnapshotView
from fusevol.log.format import LOGICAL_BLOCKS

__all__ = ["CheckReport", "Finding", "check_filesystem"]

_READ_BLOCKS = 256
_COUNTERS = ("next_ino", "next_cookie", "next_block", "size")
_TOTALS = {"files": TOTAL_FILES, "blocks": TOTAL_BLOCKS}
_OBJECTS = "SELECT type, name, sql FROM {} WHERE name NOT LIKE 'sqlite_%' ORDER BY name"


async def check_filesystem(
    volume: LogVolume | SnapshotView, progress: CheckProgress | None = None, *, deep: bool = False
) -> CheckReport:
    """Check the filesystem in a volume or snapshot as it was last synced; deep: read and verify all data as well.

    Nobody may write to the filesystem meanwhile: of one that is in use, check a snapshot. Damage becomes findings.
    Raises BackendError where the store fails.
    """
    formatted = True
    broken: Finding | None = None
    try:
        formatted = await read_superblock(volume)
    except CorruptData as error:
        broken = Finding("superblock", str(error))
    try:
        metadata = MetadataReader(volume)
    except CorruptData as error:
        findings = [broken] if broken else []
        return CheckReport(findings=[*findings, Finding("database", str(error))])
    try:
        report = Report(metadata, progress)
        if broken:
            if not await _page_one(volume):
                return CheckReport(formatted=False, findings=[broken])
            report.add(broken.kind, broken.what)
        if not formatted:
            if not await _page_one(volume):
                return CheckReport(formatted=False)
            report.add("superblock", "there are metadata, but no superblock")
        await _Check(volume, metadata, report).run(deep=deep)
        return report.finish()
    finally:
        metadata.close()


async def _page_one(volume: LogVolume | SnapshotView) -> bool:
    try:
        return any(bytes(await volume.read(BLOCK, DATABASE)))
    except CorruptData:
        return True


class _Check:
    def __init__(self, volume: LogVolume | SnapshotView, metadata: MetadataReader, report: Report) -> None:
        self._volume = volume
        self._metadata = metadata
        self._report = report

    async def run(self, *, deep: bool) -> None:
        metadata, report = self._metadata, self._report
        await self._stage("database", self._integrity)
        if not await self._stage("schema", self._schema):
            return
        counters = self._counters()
        next_block = counters["next_block"]
        await self._stage("totals", self._totals)
        await self._stage("names", lambda: check_names(metadata, report, counters["next_cookie"]))
        await self._stage("links", lambda: check_links(metadata, report))
        await self._stage("tree", lambda: check_tree(metadata, report))
        await self._stage("inodes", lambda: check_inodes(metadata, report, counters["next_ino"], next_block))
        await self._stage("addresses", lambda: check_addresses(metadata, report, next_block))
        await self._stage("attributes", lambda: check_attributes(metadata, report))
        await self._stage("blocks", lambda: self._blocks(deep=deep))

    async def _stage(self, name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Run a part of the check; what it cannot read is a finding, and the others go on."""
        before = len(self._report.drafts)
        try:
            await work()
        except (CorruptData, TypeError, ValueError) as error:
            self._report.add("metadata", f"the check of {name} could not be finished: {error}")
        return len(self._report.drafts) == before

    # -- the database -----------------------------------------------------------------------------

    async def _integrity(self) -> None:
        async for (line,) in self._metadata.paced("PRAGMA fs.integrity_check(1000)"):
            if line != "ok":
                cause = self._metadata.damage
                self._report.add("database", f"{line}{f' ({cause})' if cause else ''}")

    async def _schema(self) -> None:
        model = apsw.Connection(":memory:")
        model.execute(SCHEMA)
        wanted = {(kind, name): sql for kind, name, sql in model.execute(_OBJECTS.format("sqlite_schema"))}
        found = {(kind, name): sql for kind, name, sql in self._metadata.rows(_OBJECTS.format("fs.sqlite_schema"))}
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                what = "is missing" if key not in found else "is unknown" if key not in wanted else "is another one"
                self._report.add("schema", f"the {key[0]} {key[1]} of the database {what}", wanted.get(key) or "none")

    def _counters(self) -> dict[str, int]:
        counters: dict[str, int] = {}
        lows = {"next_ino": 2, "next_cookie": 1, "next_block": DATA_BLOCK, "size": 0}
        highs = {"next_block": LOGICAL_BLOCKS}
        try:
            rows = dict(self._metadata.rows("SELECT key, value FROM fs.counter"))
        except CorruptData as error:
            self._report.add("metadata", f"the check of counters could not be finished: {error}")
            rows = dict.fromkeys(_COUNTERS, 1 << 62) | {"next_block": LOGICAL_BLOCKS}
        for key in _COUNTERS:
            value, low, high = rows.pop(key, None), lows[key], highs.get(key, 1 << 62)
            if not isinstance(value, int) or not low <= value <= high:
                self._report.add("counter", f"the counter {key} is {value!r}", f"{low} to {high}")
                value = high
            counters[key] = value
        for key in rows.keys() - _TOTALS:
            self._report.add("counter", f"there is a counter {key!r}", "none")
        return counters

    async def _totals(self) -> None:
        kept = dict(self._metadata.rows("SELECT key, value FROM fs.counter"))
        for key, query in _TOTALS.items():
            ((found,),) = self._metadata.rows(query.replace("FROM ", "FROM fs."))
            total = found or 0
            # An earlier version kept none.
            if kept.get(key, total) != total:
                self._report.add("counter", f"the counter {key} is {kept[key]!r}", str(total))

    # -- blocks -----------------------------------------------------------------------------------

    async def _blocks(self, *, deep: bool) -> None:
        """Every mapped block has an owner; deep: and can be read."""
        owners = self._owners()
        start, end, ino, at = next(owners)
        lost: list[tuple[int, int]] = []
        async for first, mapped in self._volume.mapped(0, LOGICAL_BLOCKS, self._unreadable):
            block, count = first, mapped
            while count:
                while end <= block:
                    start, end, ino, at = next(owners)
                if block < start:
                    size = min(count, start - block)
                    self._leaked(lost, block, size)
                else:
                    size = min(count, end - block)
                    if deep and block >= DATA_BLOCK:
                        await self._verify(block, size, ino, at + block - start)
                block, count = block + size, count - size
            self._report.tell("blocks", block)
        for block, count in lost:
            what = f"{count} blocks from {block} hold data that nobody owns"
            self._report.add("leak", what, "nothing there", warning=True)

    def _leaked(self, lost: list[tuple[int, int]], block: int, count: int) -> None:
        self._report.result.leaked += count
        if lost and sum(lost[-1]) == block:
            lost[-1] = (lost[-1][0], lost[-1][1] + count)
        elif len(lost) < 1000:
            lost.append((block, count))

    def _owners(self) -> Iterator[tuple[int, int, int | None, int]]:
        """(first block, end, inode or None, block in the file), sorted by address; the last one has no end."""
        yield 0, 1, None, 0
        ((pages,),) = self._metadata.rows("PRAGMA fs.page_count")
        yield DATABASE // BLOCK, DATABASE // BLOCK + pages, None, 0
        for address, count, ino, block in self._metadata.rows(
            "SELECT address, count, ino, block FROM fs.extent WHERE count > 0 UNION ALL"
            " SELECT address, count, NULL, 0 FROM fs.discard WHERE count > 0 ORDER BY 1"
        ):
            yield address, address + count, ino, block
        yield LOGICAL_BLOCKS, LOGICAL_BLOCKS + 1, None, 0

    def _unreadable(self, block: int, count: int, reason: str) -> None:
        self._report.add("map", f"blocks {block} to {block + count - 1}: {reason}")
        end = block + count
        sql = "SELECT DISTINCT ino FROM fs.extent WHERE address < ? AND address + count > ?"
        for (ino,) in self._metadata.rows(sql, end, block):
            self._report.add("data", "a part of its blocks cannot be found: the map is damaged", ino=ino)

    async def _verify(self, block: int, count: int, ino: int | None, at: int) -> None:
        for low in range(block, block + count, _READ_BLOCKS):
            size = min(_READ_BLOCKS, block + count - low)
            self._report.result.verified += size
            try:
                await self._volume.read(size * BLOCK, low * BLOCK)
            except CorruptData:
                async for bad, error in self._each(low, size):
                    if ino is None:
                        self._report.add("data", f"{error}; the block is about to be discarded", warning=True)
                    else:
                        where = (at + bad - block) * BLOCK
                        self._report.add("data", f"bytes {where} to {where + BLOCK - 1} are damaged: {error}", ino=ino)

    async def _each(self, block: int, count: int) -> AsyncIterator[tuple[int, FusevolError]]:
        for one in range(block, block + count):
            try:
                await self._volume.read(BLOCK, one * BLOCK)
            except CorruptData as error:
                yield one, error
