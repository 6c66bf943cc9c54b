"""Checks of inodes' own fields, of content, extents and extended attributes."""

import stat
from collections.abc import Iterator
from typing import Any

from fusevol.fs import acl
from fusevol.fs.findings import MetadataReader, Report
from fusevol.fs.layout import DATA_BLOCK, INLINE_BYTES, NAME_MAX, SIZE_MAX, SYMLINK_MAX, XATTR_MAX

__all__ = ["check_addresses", "check_attributes", "check_inodes"]

_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_END = 1 << 64
_FILE_BLOCKS = SIZE_MAX >> 12
_TIMES = ("atime", "mtime", "ctime", "btime")
_UNSIGNED = ("nlink", "uid", "gid", "rdev", "size", "blocks")


async def check_inodes(metadata: MetadataReader, report: Report, next_ino: int, next_block: int) -> None:
    """Each inode's fields, and its extents."""
    extents = _Extents(metadata, report, next_block)
    columns = ", ".join(("ino", "mode", *_UNSIGNED, *_TIMES))
    async for row in metadata.paced(f"SELECT {columns}, length(data), typeof(data) FROM fs.inode ORDER BY ino"):
        ino, mode, size = row[0], row[1], row[6]
        fields = dict(zip((*_UNSIGNED, *_TIMES), row[2:], strict=False))
        inline, kind = row[-2], stat.S_IFMT(mode)
        if not 0 < ino < next_ino:
            report.add("inode-number", f"its inode number is {ino}", f"1 to {next_ino - 1}", ino=ino)
        if kind not in _KINDS or mode >> 16:
            report.add("mode", f"its mode is {mode:#o}", "a kind of file", ino=ino)
            extents.of(ino)
            continue
        for key in _UNSIGNED:
            value, most = fields[key], SIZE_MAX if key in ("size", "blocks") else (1 << 32) - 1
            if not isinstance(value, int) or not 0 <= value <= most:
                report.add(key, f"its {key} is {value!r}", f"0 to {most}", ino=ino)
        for key in _TIMES:
            if not isinstance(fields[key], int):
                report.add("time", f"its {key} is {fields[key]!r}", "nanoseconds in 64 bits", ino=ino)
        found, blocks = extents.of(ino)
        if inline is not None and row[-1] != "blob":
            report.add("inline", f"its content is stored as {row[-1]}", "bytes", ino=ino)
        _check_content(report, ino, kind, size, inline, found)
        if kind != stat.S_IFREG and found:
            report.add("extent-kind", f"it has {found} extents, and is no regular file", "none", ino=ino)
        elif blocks != fields["blocks"] and isinstance(fields["blocks"], int) and fields["blocks"] >= 0:
            report.add("blocks", f"it says to have {fields['blocks']} blocks", blocks, ino=ino)
    extents.of(_END)


def _check_content(report: Report, ino: int, kind: int, size: Any, inline: int | None, extents: int) -> None:
    if kind == stat.S_IFLNK:
        if inline is None:
            report.add("symlink", "the symbolic link has no target", ino=ino)
        elif inline > SYMLINK_MAX:
            report.add("symlink", f"the target has {inline} bytes", f"at most {SYMLINK_MAX}", ino=ino)
        elif inline != size:
            report.add("symlink", f"its size is {size}", f"{inline}, the length of its target", ino=ino)
    elif kind != stat.S_IFREG:
        if inline is not None:
            report.add("inline", f"it has {inline} bytes of content, and is no regular file", "none", ino=ino)
    elif inline is not None:
        if extents:
            report.add("inline-and-extents", f"it has content both inline and in {extents} extents", ino=ino)
        elif inline > INLINE_BYTES:
            report.add("inline", f"{inline} bytes are inline", f"at most {INLINE_BYTES}", ino=ino)
        elif inline != size and isinstance(size, int) and size >= 0:
            report.add("inline", f"{inline} bytes are inline", f"{size}, its size", ino=ino)


class _Extents:
    """All extents, in the order of inodes."""

    def __init__(self, metadata: MetadataReader, report: Report, next_block: int) -> None:
        rows = metadata.rows("SELECT ino, block, address, count FROM fs.extent ORDER BY ino, block")
        self._rows: Iterator[tuple[Any, ...]] = rows
        self._row = next(rows, (_END, 0, 0, 0))
        self._report = report
        self._next_block = next_block

    def of(self, ino: int) -> tuple[int, int]:
        """Check the extents of an inode, and those of missing ones before it; their number and blocks."""
        while self._row[0] < ino:
            missing = self._row[0]
            number, blocks = self._take(missing)
            what = f"{number} extents with {blocks} blocks are of inode {missing}, which does not exist"
            self._report.add("extent-inode", what, ino=missing)
        return self._take(ino) if self._row[0] == ino else (0, 0)

    def _take(self, ino: int) -> tuple[int, int]:
        report, number, blocks, end = self._report, 0, 0, 0
        while self._row[0] == ino and ino != _END:
            _, block, address, count = self._row
            self._row = next(self._rows, (_END, 0, 0, 0))
            number, blocks = number + 1, blocks + count
            report.result.extents += 1
            where = f"the extent of {count} blocks at block {block}"
            if count <= 0 or block < 0 or block + count > _FILE_BLOCKS:
                report.add("extent-range", f"{where} is none", f"within 0 to {_FILE_BLOCKS}", ino=ino)
                continue
            if block < end:
                report.add("extent-overlap", f"{where} begins before the one before it ends", f"from {end}", ino=ino)
            end = max(end, block + count)
            if address < DATA_BLOCK or address + count > self._next_block:
                expected = f"within {DATA_BLOCK} to {self._next_block}"
                report.add("extent-address", f"{where} is at address {address}", expected, ino=ino)
        return number, blocks


async def check_addresses(metadata: MetadataReader, report: Report, next_block: int) -> None:
    """No block of the volume has two owners: files, or discards that are still to come."""
    end, owner = 0, None
    async for address, count, ino in metadata.paced(
        "SELECT address, count, ino FROM fs.extent WHERE count > 0 UNION ALL"
        " SELECT address, count, NULL FROM fs.discard ORDER BY 1, 2"
    ):
        if ino is None and (count <= 0 or address < DATA_BLOCK or address + count > next_block):
            what = f"{count} blocks at address {address} are to be discarded"
            report.add("discard", what, f"within {DATA_BLOCK} to {next_block}")
            continue
        if address < end:
            shared = f"{min(end, address + count) - address} blocks from address {address}"
            if ino is None and owner is None:
                report.add("discard", f"{shared} are to be discarded twice")
            elif ino is None or owner is None:
                report.add("discard-in-use", f"{shared} are to be discarded, but in the file", ino=ino or owner)
            elif ino == owner:
                report.add("cross-linked", f"{shared} are in the file twice", ino=ino)
            else:
                report.add("cross-linked", f"{shared} are in the file, and in inode {owner} as well", ino=ino)
        if address + count > end:
            end, owner = address + count, ino


async def check_attributes(metadata: MetadataReader, report: Report) -> None:
    """Extended attributes: of whom, names, sizes, ACLs."""
    async for ino, name, value, mode in metadata.paced(
        "SELECT x.ino, x.name, x.value, i.mode FROM fs.xattr x LEFT JOIN fs.inode i ON i.ino = x.ino"
    ):
        if mode is None:
            report.add("xattr-inode", f"the attribute {name!r} is of inode {ino}, which does not exist", ino=ino)
            continue
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            report.add("xattr", f"the attribute {name!r} is not stored as bytes", ino=ino)
        elif not 0 < len(name) <= NAME_MAX or b"." not in name:
            report.add("xattr", f"an attribute has the name {name!r}", "namespace and name", ino=ino)
        elif len(value) > XATTR_MAX:
            report.add("xattr", f"the attribute {name!r} has {len(value)} bytes", f"at most {XATTR_MAX}", ino=ino)
        elif name in (acl.ACCESS, acl.DEFAULT):
            _check_acl(report, ino, mode, name, value)


def _check_acl(report: Report, ino: int, mode: int, name: bytes, value: bytes) -> None:
    try:
        entries = acl.parse(value)
    except OSError:
        report.add("acl", f"{name.decode()} is malformed", ino=ino)
        return
    if any(entry.perm > 7 or entry.tag not in (1, 2, 4, 8, 16, 32) for entry in entries):
        report.add("acl", f"{name.decode()} has an entry that means nothing", ino=ino)
    elif name == acl.DEFAULT:
        if not stat.S_ISDIR(mode):
            report.add("acl", "a default ACL is on something that is no directory", ino=ino)
    elif acl.mode_of(entries)[0] != mode & 0o777:
        report.add("acl", f"its mode is {mode & 0o777:#o}", f"{acl.mode_of(entries)[0]:#o}, by its ACL", ino=ino)
