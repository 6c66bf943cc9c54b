"""Checks of names, links and the shape of the tree."""

import stat
from collections.abc import Iterator
from itertools import chain
from typing import Any

from fusevol.fs.findings import MetadataReader, Report
from fusevol.fs.layout import NAME_MAX, ROOT

__all__ = ["check_links", "check_names", "check_tree"]

_END = 1 << 64


async def check_names(metadata: MetadataReader, report: Report, next_cookie: int) -> None:
    """Each name by itself: its directory, its inode, its kind, its cookie."""
    async for parent, name, ino, kind, cookie, mode, up, directory, links in metadata.paced(
        "SELECT e.parent, e.name, e.ino, e.kind, e.cookie, i.mode, i.parent, p.mode, p.nlink FROM fs.entry e"
        " LEFT JOIN fs.inode i ON i.ino = e.ino LEFT JOIN fs.inode p ON p.ino = e.parent"
    ):
        report.result.entries += 1
        report.tell("names", report.result.entries)
        at = (parent, name)
        if problem := _bad_name(name):
            report.add("name", f"the name {name!r} in directory {parent} {problem}", ino=ino, at=at)
        if directory is None:
            report.add("name-directory", f"the name {name!r} is in directory {parent}, which does not exist", ino=ino)
        elif not stat.S_ISDIR(directory):
            report.add("name-directory", f"the name {name!r} is in inode {parent}, which is no directory", ino=ino)
        elif not links:
            report.add("name-directory", f"the name {name!r} is in directory {parent}, which is deleted", ino=ino)
        if ino == ROOT:
            report.add("root", f"the root has a name, {name!r} in directory {parent}", ino=ino, at=at)
        elif mode is None:
            report.add("name-inode", f"the name {name!r} is of inode {ino}, which does not exist", ino=ino, at=at)
        else:
            if kind != mode >> 12:
                report.add("name-kind", f"its name says kind {kind:#o}", f"{mode >> 12:#o}", ino=ino, at=at)
            if stat.S_ISDIR(mode) and up != parent and ino != ROOT:
                report.add("directory-parent", f"it says to be in directory {up}", parent, ino=ino, at=at)
        if not 0 < cookie < next_cookie:
            report.add("cookie", f"its name has cookie {cookie}", f"1 to {next_cookie - 1}", ino=ino, at=at)
    for parent, cookie, count in metadata.rows(
        "SELECT parent, cookie, count(*) FROM fs.entry NOT INDEXED GROUP BY 1, 2 HAVING count(*) > 1"
    ):
        report.add("cookie", f"{count} names in the directory have cookie {cookie}", "one", ino=parent)


def _bad_name(name: bytes | str) -> str:
    if not isinstance(name, bytes):
        return "is text, not bytes"
    if not 0 < len(name) <= NAME_MAX:
        return f"is {len(name)} bytes long"
    if b"/" in name or b"\0" in name:
        return "has a byte that no name may have"
    return "is not to be stored" if name in (b".", b"..") else ""


class _Counts:
    """Rows (inode, count, ...) sorted by inode, asked for in that order."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = chain(rows, [(_END, 0)])
        self._row = next(self._rows)

    def of(self, ino: int) -> int:
        while self._row[0] < ino:
            self._row = next(self._rows)
        return int(self._row[1]) if self._row[0] == ino else 0


async def check_links(metadata: MetadataReader, report: Report) -> None:
    """Every inode is reachable or deleted, and its link count is the number of its names and subdirectories."""
    names = _Counts(metadata.rows("SELECT ino, count(*) FROM fs.entry GROUP BY ino ORDER BY ino"))
    below = _Counts(
        metadata.rows(
            "SELECT e.parent, count(*) FROM fs.entry e LEFT JOIN fs.inode i ON i.ino = e.ino"
            " WHERE coalesce(i.mode >> 12, e.kind) = 4 GROUP BY e.parent ORDER BY e.parent"
        )
    )
    root = False
    async for ino, mode, nlink, parent in metadata.paced("SELECT ino, mode, nlink, parent FROM fs.inode ORDER BY ino"):
        report.result.inodes += 1
        report.tell("inodes", report.result.inodes)
        named, subdirectories = names.of(ino), below.of(ino)
        directory = stat.S_ISDIR(mode)
        if ino == ROOT:
            root = True
            if not directory:
                report.add("root", f"the root is no directory: mode {mode:#o}", ino=ino)
            elif parent != ROOT:
                report.add("root", f"the root says to be in directory {parent}", ROOT, ino=ino)
        elif not named:
            if nlink:
                what = "directory" if directory else "file"
                report.add("unreachable", f"the {what} has no name, but {nlink} links", "a name, or 0 links", ino=ino)
            else:
                report.result.orphans += 1
            continue
        if directory:
            if named > 1 and ino != ROOT:
                report.add("directory-names", f"the directory has {named} names", 1, ino=ino)
            if nlink != 2 + subdirectories:
                report.add("link-count", f"the directory has {nlink} links", 2 + subdirectories, ino=ino)
        else:
            if ino != ROOT and nlink != named:
                report.add("link-count", f"the file has {nlink} links", named, ino=ino)
            if parent:
                report.add("directory-parent", f"a file says to be in directory {parent}", 0, ino=ino)
    if not root:
        report.add("root", "there is no root directory", ino=ROOT)


async def check_tree(metadata: MetadataReader, report: Report) -> None:
    """Directories that the root does not lead to although they have names: cycles."""
    metadata.run("CREATE TEMP TABLE reached (ino INTEGER PRIMARY KEY)")
    metadata.run(
        "INSERT INTO reached WITH RECURSIVE below (ino) AS (VALUES (?) UNION"
        " SELECT e.ino FROM below b CROSS JOIN fs.entry e ON e.parent = b.ino CROSS JOIN fs.inode i ON i.ino = e.ino"
        " WHERE i.mode >> 12 = 4) SELECT ino FROM below",
        ROOT,
    )
    seen: set[int] = set()
    async for (ino,) in metadata.paced(
        "SELECT ino FROM fs.inode WHERE mode >> 12 = 4 AND nlink > 0 AND ino NOT IN (SELECT ino FROM reached)"
    ):
        cycle = _cycle(metadata, ino)
        if cycle and not seen.intersection(cycle):
            seen.update(cycle[:1000])
            shown = " in ".join(map(str, cycle[:20]))
            report.add("cycle", f"directories are in each other: {shown} in {cycle[0]}", ino=cycle[0])


def _cycle(metadata: MetadataReader, ino: int) -> list[int]:
    """The directories around the cycle that leads up from `ino`, the least first; none where it ends."""
    slow = fast = ino
    while True:
        for _ in range(2):
            above = _above(metadata, fast)
            if above is None:
                return []
            fast = above
        slow = _above(metadata, slow) or 0
        if slow == fast:
            break
    around = [slow]
    while (above := _above(metadata, around[-1])) is not None and above != slow:
        around.append(above)
    start = around.index(min(around))
    return around[start:] + around[:start]


def _above(metadata: MetadataReader, ino: int) -> int | None:
    row = next(
        metadata.rows(
            "SELECT parent FROM fs.inode i WHERE ino = ? AND parent <> ino AND"
            " EXISTS (SELECT 1 FROM fs.entry e WHERE e.parent = i.parent AND e.ino = i.ino)",
            ino,
        ),
        None,
    )
    return None if row is None else int(row[0])
