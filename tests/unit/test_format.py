"""docs/format.md and the code say the same."""

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from fusevol.backends.memory import MemoryBackend
from fusevol.errors import CorruptData, NotSupported
from fusevol.log import Claim, clone_volume, create_volume, open_volume
from fusevol.log import format as numbers
from fusevol.log.batch import BatchHeader, parse_table
from fusevol.log.format import BLOCK, FANOUT, HEADER
from fusevol.log.reader import BlockReader
from fusevol.log.records import Blob, Checkpoint, Manifest, Pin, Snapshot
from fusevol.log.space import FreeList, runs_of
from fusevol.log.tree import Node, NodeCache, Tree, node_extent, pack_node, pack_root, unpack_node
from tests.unit.volumes import QUIET, block_bytes

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
EPOCH_1 = 1 << 27


def table(heading: str, columns: int) -> list[list[str]]:
    """The rows of the first table with `columns` columns after a text of the page."""
    rows = []
    for line in PAGE[PAGE.index(heading) :].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns:
            rows.append(cells)
        elif rows:
            break
    return rows[2:]


def record_fields(heading: str) -> list[str]:
    return [row[0] for row in table(heading, 2)]


async def sealed_volume() -> MemoryBackend:
    """The worked example: a new volume, first attach, 8 KiB written at 4096, flushed; then the process dies."""
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET, claim=Claim("me", lambda _: None, "mine")) as volume:
        await volume.write(block_bytes(1) + block_bytes(2), 4096)
        await volume.flush()
        volume.abandon()
    return backend


def stored_manifest(backend: MemoryBackend, volume_id: str = "v") -> Manifest:
    return Manifest.from_bytes(backend.spaces[volume_id].manifest.data, volume_id)


def blob_bytes(backend: MemoryBackend, blob: Blob | None, volume_id: str = "v") -> bytes:
    assert blob is not None
    data = backend.read_nowait(volume_id, blob.size, blob.address * BLOCK)
    assert xxh3_64_intdigest(data) == blob.checksum
    return data


# -- batches --------------------------------------------------------------------------------------


async def test_the_worked_example_is_what_the_code_writes_byte_by_byte() -> None:
    backend = await sealed_volume()
    manifest = stored_manifest(backend)
    raw = backend.read_nowait("v", 8 * BLOCK, EPOCH_1 * BLOCK)
    assert len(raw) == 5 * BLOCK

    first = HEADER.unpack_from(raw)
    assert first[:6] == (b"FVBATCH1", 1, numbers.KIND_MAP, 0, 1, bytes.fromhex(manifest.uuid))
    assert first[6:11] == (EPOCH_1, 1, 0, EPOCH_1 + 2, 1)
    assert first[11:14] == (0, 0, 0)
    assert manifest.checkpoint is not None
    assert manifest.checkpoint.address == EPOCH_1 + 1

    header = raw[2 * BLOCK : 3 * BLOCK]
    sums = [xxh3_64_intdigest(block_bytes(n)) for n in (1, 2)]
    stored_table = bytes.fromhex("0100000000000000 0200000000000000") + struct.pack("<2Q", *sums)
    wanted = (
        bytes.fromhex("46 56 42 41 54 43 48 3101 00010102 00 00 00")
        + bytes.fromhex(manifest.uuid)
        + bytes.fromhex("02 00 00 08 00 00 00 0002 00 00 00 00 00 00 0001 00 00 00 00 00 00 00")
        + bytes.fromhex("05 00 00 08 00 00 00 0000 00 00 00 00 00 00 0001 00 00 0000 00 00 00")
        + struct.pack("<Q", xxh3_64_intdigest(stored_table))
    )
    assert header[:88] == wanted
    (sealed_at,) = struct.unpack_from("<Q", header, 88)
    assert first[14] <= sealed_at < first[14] + 60 * 10**9
    assert header[96:128] == bytes(32)
    assert header[128 : 128 + len(stored_table)] == stored_table
    assert not any(header[128 + len(stored_table) : 4088])
    assert struct.unpack_from("<Q", header, 4088)[0] == xxh3_64_intdigest(header[:4088])
    assert raw[3 * BLOCK : 4 * BLOCK] == block_bytes(1)
    assert raw[4 * BLOCK :] == block_bytes(2)


def test_the_page_shows_the_bytes_of_the_worked_example() -> None:
    text = " ".join(PAGE[PAGE.index("*Worked example.*") : PAGE.index("## 3. Map")].split())
    for piece in (
        "`46 56 42 41 54 43 48 31` magic", "`01 00` version", "`01` data", "`01` barrier", "`02 00 00 00` two blocks",
        "`02 00 00 08 00 00 00 00` address 0x8000002", "`05 00 00 08 ..` next 0x8000005", "at address `0x8000000`",
        "block 1 is now at 0x8000003, block 2 at 0x8000004",
    ):  # fmt: skip
        assert piece in text


def test_the_header_table_of_the_page_is_the_struct_of_the_code() -> None:
    rows = table("## 2. Batch", 4)
    sizes = {row[2]: (int(row[0]), int(row[1])) for row in rows if row[2]}
    names = [
        "magic", "version", "kind", "flags", "blocks", "uuid", "address", "sequence", "durable", "next", "checkpoint",
        "ops", "table_blocks", "table_checksum", "time",
    ]  # fmt: skip
    formats = ["8s", "H", "B", "B", "I", "16s", "Q", "Q", "Q", "Q", "Q", "I", "I", "Q", "Q"]
    assert HEADER.format == "<" + "".join(formats)
    at = 0
    for name, code in zip(names, formats, strict=True):
        assert sizes[name] == (at, struct.calcsize(code)), name
        at += struct.calcsize(code)
    assert sizes["table"] == (numbers.TABLE_OFFSET, numbers.INLINE_TABLE)
    assert sizes["checksum"] == (numbers.CHECKSUM_OFFSET, 8)
    end = 0
    for offset, length, *_ in rows:
        assert int(offset) == end, "a gap in the table"
        end += int(length)
    assert end == BLOCK


def test_the_constants_are_those_of_the_page() -> None:
    words = " ".join(PAGE.split())
    for text in (
        "Format version 1.", "A **block** is 4096 bytes", "has 51 bits: `epoch` (24 bits) above `index` (27 bits)",
        "An epoch holds 512 GiB of log", "1 data, 2 map, 3 mark", "1 barrier; other bits zero",
        "A tree of nodes with 1,024 entries each", "a bitmap of 128 bytes",
        "1,024 words, then 1,024 checksums (4 blocks)",
        "length in blocks minus one in bits 51-53, bit 54 set where it is stored in full",
    ):  # fmt: skip
        assert text in words, text
    assert (numbers.FORMAT_VERSION, numbers.BLOCK, numbers.BATCH_MAGIC) == (1, 4096, b"FVBATCH1")
    assert (numbers.ADDRESS_BITS, numbers.EPOCH_BITS, numbers.INDEX_BITS) == (51, 24, 27)
    assert numbers.EPOCH_BLOCKS * BLOCK == 512 << 30
    assert (numbers.KIND_DATA, numbers.KIND_MAP, numbers.KIND_MARK, numbers.FLAG_BARRIER) == (1, 2, 3, 1)
    assert (numbers.OP_WRITE, numbers.OP_DISCARD, numbers.OP_KIND_SHIFT, numbers.OP_BYTES) == (0, 1, 56, 16)
    assert (numbers.FANOUT, numbers.BITMAP_BYTES, numbers.FULL_NODE_BLOCKS) == (1024, 128, 4)
    assert (numbers.NODE_LENGTH_SHIFT, numbers.NODE_LENGTH_MASK, numbers.NODE_FULL) == (51, 7, 1 << 54)
    assert (numbers.ROOT_ENTRY.size, numbers.FREE_ENTRY.size) == (24, 16)
    assert (numbers.MANIFEST_MAGIC, numbers.MANIFEST_HEAD.size) == (b"FVMANIF1", 12)
    assert "`FVMANIF1`, length of the body (4 bytes)" in words


async def test_a_discard_and_a_table_behind_the_payload_are_stored_as_the_page_says() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    wanted = []
    async with open_volume(backend, "v", options=QUIET) as volume:
        for n in range(0, 400, 2):  # 200 operations and as many checksums: more than a header has room for
            await volume.write(block_bytes(n), n * BLOCK)
            wanted.append((n, 1, False))
        await volume.discard(2 * BLOCK, 0)
        wanted.append((0, 2, True))
        await volume.flush()
        volume.abandon()
    uuid = bytes.fromhex(stored_manifest(backend).uuid)
    at = EPOCH_1 + 2
    header = BatchHeader.parse(backend.read_nowait("v", BLOCK, at * BLOCK), uuid)
    assert header is not None
    assert (header.blocks, header.ops, header.table_blocks) == (200, 201, 2)
    stored = backend.read_nowait("v", 2 * BLOCK, (at + 1 + 200) * BLOCK)
    size = 201 * 16 + 200 * 8
    assert header.table_checksum == xxh3_64_intdigest(stored[:size])
    assert not any(stored[size:])
    assert stored[200 * 16 : 201 * 16] == bytes(8) + b"\x02" + bytes(6) + b"\x01"
    parsed = parse_table(header, stored)
    assert parsed is not None
    operations, sums = parsed
    assert [(op.start, op.count, op.discard) for op in operations] == wanted
    assert list(sums) == [xxh3_64_intdigest(block_bytes(n)) for n in range(0, 400, 2)]
    assert header.next == at + header.total == at + 1 + 200 + 2


async def test_a_mark_is_a_header_alone_that_says_what_was_durable() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET) as volume:
        await volume.write(block_bytes(1), 0)
        await volume.flush()
        assert volume._log is not None
        volume._log.mark()
        while volume._log._sealed:
            await volume._log._moved.wait()
        volume.abandon()
    uuid = bytes.fromhex(stored_manifest(backend).uuid)
    data = BatchHeader.parse(backend.read_nowait("v", BLOCK, (EPOCH_1 + 2) * BLOCK), uuid)
    assert data is not None
    mark = BatchHeader.parse(backend.read_nowait("v", BLOCK, data.next * BLOCK), uuid)
    assert mark is not None
    assert (mark.kind, mark.barrier, mark.blocks, mark.ops, mark.total) == (numbers.KIND_MARK, False, 0, 0, 1)
    assert (mark.sequence, mark.durable, mark.checkpoint) == (data.sequence + 1, data.sequence, 0)


@pytest.mark.parametrize(("offset", "value"), [(8, 2), (10, 4), (10, 0), (11, 2), (11, 3)])
async def test_a_header_with_an_unknown_version_kind_or_flag_is_refused_not_guessed(offset: int, value: int) -> None:
    backend = await sealed_volume()
    uuid = bytes.fromhex(stored_manifest(backend).uuid)
    header = bytearray(backend.read_nowait("v", BLOCK, (EPOCH_1 + 2) * BLOCK))
    header[offset] = value
    struct.pack_into("<Q", header, 4088, xxh3_64_intdigest(bytes(header[:4088])))
    with pytest.raises(CorruptData):
        BatchHeader.parse(header, uuid)
    backend.spaces["v"].write(header, (EPOCH_1 + 2) * BLOCK)
    with pytest.raises(CorruptData, match='"v"'):
        async with open_volume(backend, "v"):
            pass


def test_a_header_of_another_volume_or_with_any_flipped_byte_is_none_at_all() -> None:
    from mmap import mmap

    from fusevol.log.batch import BUFFER_BYTES, Batch

    batch = Batch(mmap(-1, BUFFER_BYTES), 77)
    batch.append(5, b"x" * BLOCK, [xxh3_64_intdigest(b"x" * BLOCK)])
    batch.seal(b"u" * 16, 3, 2, barrier=True)
    stored = bytes(batch.bytes()[:BLOCK])
    assert BatchHeader.parse(stored, b"u" * 16) is not None
    assert BatchHeader.parse(stored, b"v" * 16) is None
    assert BatchHeader.parse(stored[:-1], b"u" * 16) is None
    for at in range(BLOCK):
        damaged = bytearray(stored)
        damaged[at] ^= 0x10
        assert BatchHeader.parse(damaged, b"u" * 16) is None


# -- map ------------------------------------------------------------------------------------------


words_st = st.integers(1, (1 << 55) - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.dictionaries(st.integers(0, FANOUT - 1), words_st, min_size=1, max_size=40),
        st.integers(1, FANOUT).map(lambda n: {i: i + 1 for i in range(n)}),
        st.just({i: (1 << 55) - 1 - i for i in range(FANOUT)}),
        st.sets(st.integers(0, FANOUT - 1), max_size=2).map(
            lambda holes: {i: i + 1 for i in range(FANOUT) if i not in holes}
        ),
    )
)
def test_a_node_comes_back_as_it_was_packed_and_has_the_layout_of_the_page(entries: dict[int, int]) -> None:
    node = Node.new()
    for at, word in entries.items():
        node.w[at], node.s[at] = word, xxh3_64_intdigest(str(at).encode())
    data, bits = pack_node(node)
    address = 123 << 27
    got_address, blocks = node_extent(address | bits)
    assert (got_address, blocks * BLOCK) == (address, len(data))
    used = sorted(entries)
    if len(entries) == FANOUT:
        assert bits >> 54 & 1
        assert blocks == 4
        assert data == node.words.tobytes() + node.sums.tobytes()
    else:
        assert not bits >> 54
        assert 1 <= blocks <= 5
        assert [at for at in range(FANOUT) if data[at // 8] >> at % 8 & 1] == used
        end = 128 + 16 * len(used)
        assert struct.unpack_from(f"<{len(used)}Q", data, 128) == tuple(entries[at] for at in used)
        assert struct.unpack_from(f"<{len(used)}Q", data, 128 + 8 * len(used)) == tuple(node.s[at] for at in used)
        assert not any(data[end:])
        assert len(data) == -(-end // BLOCK) * BLOCK
    back = unpack_node(data, address | bits, "a node")
    assert np.array_equal(back.words, node.words)
    assert np.array_equal(back.sums, node.sums)


def test_a_packed_node_that_claims_more_entries_than_it_has_bytes_is_damage() -> None:
    with pytest.raises(CorruptData, match="claims 1024 entries"):
        unpack_node(b"\xff" * BLOCK, 1 << 27, "a node")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, (1 << 31) - 1), st.tuples(words_st, words_st), max_size=50))
async def test_a_root_comes_back_as_it_was_packed(root: dict[int, tuple[int, int]]) -> None:
    data = pack_root(root)
    flat = [word for index in sorted(root) for word in (index, *root[index])]
    assert data == struct.pack(f"<{len(flat)}Q", *flat)
    backend = MemoryBackend()
    await backend.create("v")
    await backend.write("v", data or b"\0", EPOCH_1 * BLOCK)
    blob = Blob(address=EPOCH_1, size=len(data), checksum=xxh3_64_intdigest(data)) if data else None
    tree = await Tree.load(BlockReader(backend, "v", ()), NodeCache(4), blob)
    assert tree.root == root


@settings(max_examples=80, deadline=None)
@given(st.sets(st.integers(EPOCH_1, EPOCH_1 + 200), max_size=80), st.sets(st.integers(EPOCH_1, EPOCH_1 + 200)))
def test_a_free_list_holds_what_was_put_in_joined_and_comes_back_from_its_bytes(one: set[int], two: set[int]) -> None:
    two -= one
    free = FreeList(runs_of(np.array(sorted(one), np.uint64))).plus([runs_of(np.array(sorted(two), np.uint64))])
    assert free.blocks == len(one | two)
    data = free.to_bytes()
    runs = list(struct.iter_unpack("<QQ", data))
    assert [address + i for address, count in runs for i in range(count)] == sorted(one | two)
    assert all(a + n < b for (a, n), (b, _) in pairwise(runs)), "runs that touch are joined"
    back = FreeList.from_bytes(data)
    assert np.array_equal(back.runs, free.runs)
    gone = back.longest(free.blocks // 2)
    back.remove(gone)
    assert back.blocks == free.blocks - sum(count for _, count in gone) <= free.blocks // 2
    left = {a + i for a, n in back.runs.tolist() for i in range(n)}
    assert left == (one | two) - {a + i for a, n in gone for i in range(n)}
    if one:
        with pytest.raises(CorruptData, match="freed twice"):
            free.plus([runs_of(np.array([min(one)], np.uint64))])


def test_a_free_list_that_is_no_whole_number_of_entries_is_damage() -> None:
    with pytest.raises(CorruptData):
        FreeList.from_bytes(bytes(17))


# -- records --------------------------------------------------------------------------------------


async def test_the_manifest_is_magic_length_body_and_checksum() -> None:
    backend = await sealed_volume()
    data = backend.spaces["v"].manifest.data
    assert data[:8] == b"FVMANIF1"
    (length,) = struct.unpack_from("<I", data, 8)
    assert len(data) == 12 + length + 8
    assert struct.unpack_from("<Q", data, 12 + length)[0] == xxh3_64_intdigest(data[: 12 + length])
    body = json.loads(data[12 : 12 + length])
    # Those that are there in passing.
    assert not {"becoming", "end"} & body.keys()
    assert sorted([*body, "becoming", "end"]) == sorted(record_fields("**Manifest** (through"))
    assert (body["format"], body["epoch"], body["state"], body["pins"]) == (1, 1, "ready", [])
    assert len(body["uuid"]) == 32
    assert sorted(body["checkpoint"]) == ["address", "checksum", "size"]


async def test_a_manifest_comes_back_as_it_was_stored() -> None:
    manifest = Manifest(
        uuid="ab" * 16, epoch=7, writer="me", checkpoint=Blob(address=1, size=2, checksum=(1 << 64) - 1)
    )
    assert Manifest.from_bytes(manifest.to_bytes(), "v") == manifest


async def test_the_checkpoint_record_and_the_snapshot_table_have_the_fields_of_the_page() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET) as volume:
        await volume.write(block_bytes(1), 0)
        await volume.snapshot("s", {"a": "b"})
    await clone_volume(backend, "v", "s", "c")
    manifest, clone = stored_manifest(backend), stored_manifest(backend, "c")
    record = json.loads(blob_bytes(backend, manifest.checkpoint))
    text = " ".join(PAGE.split())
    shown = text[text.index("**Checkpoint record**") : text.index("**Snapshot table**")]
    for name in record:
        assert f"`{name}`" in shown, name
    assert tuple(record) == Checkpoint.__struct_fields__
    snapshots = json.loads(blob_bytes(backend, Blob(**record["snapshots"])))
    shown = text[text.index("**Snapshot table**") :]
    fields = shown[shown.index("{") + 1 : shown.index("}")].split(", ")
    assert list(snapshots[0]) == fields == list(Snapshot.__struct_fields__)
    assert clone.origin is not None
    assert (clone.origin.parent, clone.origin.snapshot, clone.origin.mapped) == ("v", 1, 1)
    assert clone.origin.root == Blob(**snapshots[0]["root"])
    assert [(pin.snapshot, pin.clone) for pin in manifest.pins] == [(1, "c")]
    assert isinstance(manifest.pins[0], Pin)


def test_a_manifest_of_a_later_format_is_not_supported_and_one_that_makes_no_sense_is_damage() -> None:
    def sealed(body: bytes) -> bytes:
        head = struct.pack("<8sI", b"FVMANIF1", len(body)) + body
        return head + struct.pack("<Q", xxh3_64_intdigest(head))

    with pytest.raises(NotSupported, match='"v" has format 2'):
        Manifest.from_bytes(sealed(b'{"format":2,"whatever":[]}'), "v")
    for body in (b"[]", b"{", b"", b"null", b'{"format":1}', b'{"format":1,"uuid":5}', b"\xff"):
        with pytest.raises(CorruptData, match='"v"'):
            Manifest.from_bytes(sealed(body), "v")


@pytest.mark.parametrize("count", [1, 700, FANOUT])
@pytest.mark.parametrize("shift", range(8))
def test_a_node_is_read_from_anywhere_in_memory(count: int, shift: int) -> None:
    node = Node.new()
    node.words[:count] = np.arange(1, count + 1)
    node.sums[:count] = np.arange(count) ** 3
    data, bits = pack_node(node)
    memory = bytes(shift) + data
    found = unpack_node(memoryview(memory)[shift:], bits | 1, "a node")
    assert (found.w.tolist(), found.s.tolist()) == (node.words.tolist(), node.sums.tolist())
