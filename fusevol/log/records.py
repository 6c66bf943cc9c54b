"""The records of a volume: manifest, checkpoint, snapshots; JSON, strict, and always under a checksum."""

from typing import TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

from fusevol.api.io import Buffer
from fusevol.backends.base import SEALED
from fusevol.errors import CorruptData, NotSupported, WrongKey
from fusevol.log.format import CHECKSUM, FORMAT_VERSION, MANIFEST_HEAD, MANIFEST_MAGIC

__all__ = ["Ancestor", "Blob", "Checkpoint", "Manifest", "Origin", "Pin", "Snapshot", "decode", "encode"]


T = TypeVar("T")


class Record(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of the stored records."""


class Blob(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A run of bytes in the log: block address, size in bytes, checksum of the bytes."""

    address: int
    size: int
    checksum: int


class Ancestor(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The space that holds addresses of epochs up to `epoch` (and above the previous ancestor's)."""

    epoch: int
    volume_id: str


class Origin(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where a clone comes from: the snapshot it starts as, and the spaces its blocks are in."""

    parent: str
    snapshot: int
    root: Blob | None
    mapped: int
    ancestors: tuple[Ancestor, ...]


class Pin(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A snapshot that must stay because a clone reads its blocks. `uuid` is the clone's."""

    snapshot: int
    clone: str
    uuid: str


class _Format(msgspec.Struct):
    format: int


class Manifest(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The head of a volume, changed by compare-and-swap only.

    holder: left out where nobody says to have it. about: what its owner has to say of it, for the log just text.
    becoming: what the live tree is being turned into, while it is neither that nor what it was; text likewise. end:
    where the log behind the checkpoint ends, whatever arrives there yet; left out but for an attach on a full store.
    """

    format: int = FORMAT_VERSION
    uuid: str
    epoch: int = 0
    writer: str = ""
    holder: str | msgspec.UnsetType = msgspec.UNSET
    about: str | msgspec.UnsetType = msgspec.UNSET
    becoming: str | msgspec.UnsetType = msgspec.UNSET
    state: str = "ready"
    checkpoint: Blob | None = None
    end: int | msgspec.UnsetType = msgspec.UNSET
    origin: Origin | None = None
    pins: tuple[Pin, ...] = ()

    def to_bytes(self) -> bytes:
        """The stored form, checksum included."""
        body = msgspec.json.encode(self)
        head = MANIFEST_HEAD.pack(MANIFEST_MAGIC, len(body)) + body
        return head + CHECKSUM.pack(xxh3_64_intdigest(head))

    @classmethod
    def from_bytes(cls, data: bytes, volume_id: str) -> "Manifest":
        """Read the stored form.

        Raises CorruptData, NotSupported for a later format, WrongKey for one that is still encrypted.
        """
        where = f'the manifest of volume "{volume_id}"'
        if data.startswith(SEALED):
            raise WrongKey(f"{where} is encrypted", hint="say in config.toml which key_file its pool has")
        if len(data) < MANIFEST_HEAD.size + CHECKSUM.size:
            raise CorruptData(f"{where} is cut short: {len(data)} bytes")
        magic, length = MANIFEST_HEAD.unpack_from(data)
        if magic != MANIFEST_MAGIC:
            raise CorruptData(f"{where} is not one: it starts with {magic!r}")
        end = MANIFEST_HEAD.size + length
        if len(data) != end + CHECKSUM.size:
            raise CorruptData(f"{where} has {len(data)} bytes instead of {end + CHECKSUM.size}")
        if CHECKSUM.unpack_from(data, end)[0] != xxh3_64_intdigest(data[:end]):
            raise CorruptData(f"{where} does not match its checksum")
        body = data[MANIFEST_HEAD.size : end]
        # Of a later format only this one field is known.
        if (version := decode(body, _Format, where).format) != FORMAT_VERSION:
            raise NotSupported(f"{where} has format {version}; this version reads format {FORMAT_VERSION}")
        return decode(body, cls, where)


class Snapshot(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A pinned root.

    position: data blocks below this address may be held by the snapshot, those above are younger.
    node_position: the same for map nodes, which a checkpoint writes after its barrier.
    mapped, inherited: logical blocks, all of them and those in ancestors' spaces.
    base, neighbours: snapshot ids; see docs/format.md section 6.
    created: nanoseconds since 1970. auto: taken by a restore, of what was there before.
    """

    id: int
    name: str
    created: int
    labels: dict[str, str] = {}
    auto: bool = False
    root: Blob | None
    mapped: int
    inherited: int
    position: int
    node_position: int
    base: int | None = None
    neighbours: tuple[int, ...] = ()


class Checkpoint(Record, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The state of a volume at a barrier; see docs/format.md section 4 for the fields."""

    number: int
    sequence: int
    position: int
    root: Blob | None = None
    mapped: int = 0
    inherited: int = 0
    data_blocks: int = 0
    meta_blocks: int = 0
    base: int | None = None
    neighbours: tuple[int, ...] = ()
    snapshots: Blob | None = None
    free: Blob | None = None
    next_snapshot: int = 1
    swept: tuple[tuple[int, int], ...] = ()
    time: int = 0


encode = msgspec.json.encode


def decode(body: Buffer, kind: type[T], where: str) -> T:
    """Decode a record strictly; `where` names it in the CorruptData raised otherwise."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptData(f"{where} makes no sense: {error}") from error
