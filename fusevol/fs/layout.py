"""Where a filesystem keeps what, in the logical space of its volume, and the schema of its database.

[0, 4 KiB)              superblock: magic, version, checksum
[DATABASE, DATA)        the SQLite database file
[DATA, 2**63)           file data: addresses are handed out by bumping and never used again
"""

import struct

from fusevol.log.format import BLOCK

__all__ = [
    "BLOCK",
    "DATABASE",
    "DATA_BLOCK",
    "FS_VERSION",
    "INLINE_BYTES",
    "LINK_MAX",
    "NAME_MAX",
    "ROOT",
    "SCHEMA",
    "SIZE_MAX",
    "SUPERBLOCK",
    "SUPERBLOCK_MAGIC",
    "SYMLINK_MAX",
    "TOTAL_BLOCKS",
    "TOTAL_FILES",
    "XATTR_MAX",
]

SUPERBLOCK_MAGIC = b"FUSEVOL1"
FS_VERSION = 1
#: magic, version, xxh3-64 of the bytes before
SUPERBLOCK = struct.Struct("<8sQQ")

#: Byte offset of the database; its greatest size is SQLite's, 2**32 pages of 4 KiB, which ends below DATA.
DATABASE = 1 << 20
#: First logical block of file data (byte offset 2**50).
DATA_BLOCK = 1 << 38

ROOT = 1
#: Files up to this size live in their inode's row.
INLINE_BYTES = 2000
NAME_MAX = 255
SYMLINK_MAX = 4095
LINK_MAX = 65000
XATTR_MAX = 65536
#: Largest file: what fits between DATA and the end of the space, and in a signed 64-bit offset with room to spare.
SIZE_MAX = 1 << 62

SCHEMA = """
-- One row per file. Times are nanoseconds since 1970. size: bytes, of a symlink its target's. blocks: data
-- blocks mapped, for st_blocks and the quota. parent: of a directory, the one it is in; else 0. data: content of a
-- small file without extents, target of a symlink, else NULL. nlink 0: deleted, but still open (an orphan).
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, nlink INTEGER NOT NULL, uid INTEGER NOT NULL,
    gid INTEGER NOT NULL, rdev INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
    atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, btime INTEGER NOT NULL,
    parent INTEGER NOT NULL, data BLOB
);
CREATE INDEX orphan ON inode (ino) WHERE nlink = 0;
-- Names. cookie: grows with every entry made, so that a listing can go on after it in any process. kind: S_IFMT
-- bits shifted right by 12.
CREATE TABLE entry (
    parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL,
    cookie INTEGER NOT NULL, PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE UNIQUE INDEX listing ON entry (parent, cookie);
-- Runs of file blocks: block of the file -> logical block of the volume. Never overlapping within a file.
CREATE TABLE extent (
    ino INTEGER NOT NULL, block INTEGER NOT NULL, address INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (ino, block)
) WITHOUT ROWID;
CREATE TABLE xattr (
    ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (ino, name)
) WITHOUT ROWID;
-- Logical blocks that no file has any more; discarded once the commit that says so is durable, then removed here.
CREATE TABLE discard (address INTEGER PRIMARY KEY, count INTEGER NOT NULL);
-- next_ino, next_cookie, next_block: the next to hand out. size: quota in bytes, 0 for none. files: rows of inode;
-- blocks: the sum of theirs.
CREATE TABLE counter (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

#: What the counters `blocks` and `files` say.
TOTAL_BLOCKS, TOTAL_FILES = "SELECT sum(blocks) FROM inode", "SELECT count(*) FROM inode"
