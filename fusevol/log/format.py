"""The numbers of docs/format.md: constants only, so that the page and the code cannot drift apart unseen."""

import struct

#: Bytes of a block: the unit of mapping, of checksums and of addresses.
BLOCK = 4096
BLOCK_SHIFT = 12

FORMAT_VERSION = 1

# Block addresses: epoch above index.
INDEX_BITS = 27
EPOCH_BITS = 24
ADDRESS_BITS = INDEX_BITS + EPOCH_BITS
ADDRESS_MASK = (1 << ADDRESS_BITS) - 1
EPOCH_BLOCKS = 1 << INDEX_BITS
LAST_EPOCH = (1 << EPOCH_BITS) - 1

# Batches.
BATCH_MAGIC = b"FVBATCH1"
KIND_DATA = 1
KIND_MAP = 2
KIND_MARK = 3
FLAG_BARRIER = 1
#: magic, version, kind, flags, blocks, uuid, address, sequence, durable, next, checkpoint, ops,
#: table_blocks, table_checksum, time
HEADER = struct.Struct("<8sHBBI16sQQQQQIIQQ")
TABLE_OFFSET = 128
CHECKSUM_OFFSET = BLOCK - 8
INLINE_TABLE = CHECKSUM_OFFSET - TABLE_OFFSET
OP_BYTES = 16
OP_WRITE = 0
OP_DISCARD = 1
OP_KIND_SHIFT = 56
OP_COUNT_MASK = (1 << OP_KIND_SHIFT) - 1
#: Most payload blocks of a data batch: with header and table it stays within 8 MiB.
BATCH_BLOCKS = 2032
#: Most operations of a data batch.
BATCH_OPS = 4096

# Map nodes.
FANOUT_BITS = 10
FANOUT = 1 << FANOUT_BITS
BITMAP_BYTES = FANOUT // 8
FULL_NODE_BLOCKS = FANOUT * 16 // BLOCK
NODE_LENGTH_SHIFT = ADDRESS_BITS
NODE_LENGTH_MASK = 0b111
NODE_FULL = 1 << (ADDRESS_BITS + 3)
ROOT_ENTRY = struct.Struct("<QQQ")
FREE_ENTRY = struct.Struct("<QQ")

# Manifest.
MANIFEST_MAGIC = b"FVMANIF1"
MANIFEST_HEAD = struct.Struct("<8sI")
CHECKSUM = struct.Struct("<Q")

#: Logical blocks end here: offsets are signed 64-bit.
LOGICAL_BLOCKS = 1 << (63 - BLOCK_SHIFT)
