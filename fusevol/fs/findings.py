"""What a check of a filesystem found, and the reader of metadata that it works with."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apsw
import trio

from fusevol.errors import BackendError, CorruptData, FusevolError
from fusevol.fs.layout import ROOT
from fusevol.fs.vfs import VolumeVFS
from fusevol.log import LogVolume, SnapshotView

__all__ = ["CheckProgress", "CheckReport", "Finding", "MetadataReader", "Report"]

#: Called now and then with what is being looked at, and how much of it was.
CheckProgress = Callable[[str, int], None]

_PACE = 500
#: Paths are looked up for so many files; beyond that the inode number has to do.
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    kind: a word for it. what: in words. expected: what should have been, where that can be
    said. ino: the inode concerned. path: a path of it, where one was found, of undecodable bytes with surrogates.
    warning: no file suffers from it.
    """

    kind: str
    what: str
    expected: str = ""
    ino: int | None = None
    path: str | None = None
    warning: bool = False

    @property
    def unreadable(self) -> bool:
        """Whether it says that something could not be read, or makes no sense, and not that it is wrong."""
        return self.kind in ("superblock", "database", "metadata", "map", "data")

    def __str__(self) -> str:
        where = self.path if self.path is not None else f"inode {self.ino}" if self.ino is not None else ""
        return (f"{where}: " if where else "") + self.what + (f"; expected: {self.expected}" if self.expected else "")


@dataclass(slots=True)
class CheckReport:
    """All findings (the first thousand of each kind, `omitted` says how many more), and how much was looked at.

    formatted: whether there is a filesystem. orphans: files deleted while open, which the next mount removes.
    leaked: blocks mapped that nobody owns. verified: data blocks read, in a deep check.
    """

    formatted: bool = True
    findings: list[Finding] = field(default_factory=list)
    omitted: int = 0
    inodes: int = 0
    entries: int = 0
    extents: int = 0
    orphans: int = 0
    leaked: int = 0
    verified: int = 0

    @property
    def errors(self) -> list[Finding]:
        """Findings that are more than a warning."""
        return [finding for finding in self.findings if not finding.warning]

    @property
    def warnings(self) -> list[Finding]:
        """The other ones."""
        return [finding for finding in self.findings if finding.warning]


class MetadataReader:
    """Reads filesystems' databases without changing them, sorting in files of the host's temporary directory.

    Tables are in the schema `fs`, or where there are several volumes in those that they are named by. Every method may
    raise CorruptData or BackendError.
    """

    def __init__(self, volume: LogVolume | SnapshotView | None = None, **more: LogVolume | SnapshotView) -> None:
        volumes = ({"fs": volume} if volume else {}) | more
        self._vfses = [VolumeVFS(each) for each in volumes.values()]
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        self._connection = apsw.Connection("", flags=flags)
        self.run("PRAGMA temp_store = FILE")
        for schema, vfs in zip(volumes, self._vfses, strict=True):
            self.run(f"ATTACH 'file:fusevol?mode=ro&vfs={vfs.name}' AS {schema}")
            self.run(f"PRAGMA {schema}.cache_size = -32768")

    def run(self, sql: str, *bindings: Any) -> None:
        """Execute a statement."""
        for _ in self.rows(sql, *bindings):
            pass

    def begin(self) -> None:
        """Stay in one transaction from here on: else each query first asks whether the database was changed."""
        self.run("BEGIN")

    def rows(self, sql: str, *bindings: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one at a time."""
        try:
            yield from self._connection.cursor().execute(sql, bindings)
        except apsw.Error as error:
            raise self.translated(error) from error

    async def paced(self, sql: str, *bindings: Any) -> AsyncIterator[tuple[Any, ...]]:
        """The same, letting other tasks run now and then."""
        for number, row in enumerate(self.rows(sql, *bindings)):
            yield row
            if number % _PACE == _PACE - 1:
                await trio.lowlevel.checkpoint()

    def translated(self, error: apsw.Error) -> FusevolError:
        """SQLite's error as one of this project's."""
        cause = self.damage
        if cause is not None:
            return cause
        if isinstance(error, apsw.CorruptError | apsw.NotADBError | apsw.SQLError):
            return CorruptData(f"the metadata is damaged: {error}")
        return BackendError(f"the metadata could not be read: {error}")

    @property
    def damage(self) -> FusevolError | None:
        """What the last page that SQLite could not read failed with, if it kept that to itself."""
        causes = [vfs.error for vfs in self._vfses if vfs.error is not None]
        for vfs in self._vfses:
            vfs.error = None
        return causes[0] if causes else None

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    # -- paths ------------------------------------------------------------------------------------

    def paths(self, wanted: set[int]) -> dict[int, str]:
        """A path for each of these inodes that has one; one pass over all names."""
        if not wanted:
            return {}
        self.run("CREATE TEMP TABLE IF NOT EXISTS wanted (ino INTEGER PRIMARY KEY)")
        self.run("DELETE FROM wanted")
        for ino in wanted:
            self.run("INSERT INTO wanted VALUES (?)", ino)
        found = {ROOT: "/"} if ROOT in wanted else {}
        names = self.rows("SELECT ino, parent, name FROM fs.entry WHERE ino IN (SELECT ino FROM wanted)")
        for ino, parent, name in list(names):
            if ino not in found and (path := self.path(parent, name)) is not None:
                found[ino] = path
        return found

    def path(self, parent: int, name: bytes | str) -> str | None:
        """The path of a name in a directory; None where the directory has none."""
        parts, seen = [_text(name)], {0}
        while parent not in seen:
            seen.add(parent)
            if parent == ROOT:
                return "/" + "/".join(reversed(parts))
            row = next(
                self.rows(
                    "SELECT i.parent, e.name FROM fs.inode i JOIN fs.entry e ON e.parent = i.parent AND e.ino = i.ino"
                    " WHERE i.ino = ?",
                    parent,
                ),
                None,
            )
            if row is None:
                return None
            parent = row[0]
            parts.append(_text(row[1]))
        return None


def _text(name: bytes | str) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


class Report:
    """Gathers findings for a CheckReport."""

    def __init__(self, metadata: MetadataReader, progress: CheckProgress | None) -> None:
        self.result = CheckReport()
        self._metadata = metadata
        self._progress = progress
        self.drafts: list[tuple[Finding, tuple[int, bytes | str] | None]] = []
        self._kinds: dict[str, int] = {}

    def add(
        self, kind: str, what: str, expected: object = "", *, ino: int | None = None,
        at: tuple[int, bytes | str] | None = None, warning: bool = False,
    ) -> None:  # fmt: skip
        """Note a finding about an inode, or about a name: (directory, name)."""
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if self._kinds[kind] > _MOST:
            self.result.omitted += 1
            return
        self.drafts.append((Finding(kind, what, str(expected), ino, None, warning), at))

    def tell(self, what: str, done: int) -> None:
        """Report progress."""
        if self._progress and done % _PACE == 0:
            self._progress(what, done)

    def finish(self) -> CheckReport:
        """Look paths up, as far as that can be done."""
        inos = [finding.ino for finding, at in self.drafts if finding.ino is not None and at is None]
        try:
            paths = self._metadata.paths(set(inos[:_MOST]))
        except FusevolError:
            paths = {}
        for finding, at in self.drafts:
            path = paths.get(finding.ino) if finding.ino is not None else None
            if at is not None:
                try:
                    path = self._metadata.path(*at)
                except FusevolError:
                    path = None
            self.result.findings.append(
                Finding(finding.kind, finding.what, finding.expected, finding.ino, path, finding.warning)
            )
        return self.result
