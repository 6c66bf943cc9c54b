"""Labels of volumes: the users' own, and those with which the driver remembers something."""

import re
from collections.abc import Mapping

import msgspec

from fusevol.api import Volume
from fusevol.errors import InvalidArgument
from fusevol.home import DEFAULT_POOL

__all__ = [
    "COPIED_LABEL",
    "POOL_LABEL",
    "RESERVED_LABELS",
    "STORAGE_LABELS",
    "TAG_LABEL",
    "check_labels",
    "own_labels",
    "pool_of",
    "with_labels",
    "without_labels",
]

#: Labels that begin so are the driver's own.
RESERVED_LABELS = "fusevol."
#: The pool that a volume is in.
POOL_LABEL = "fusevol.pool"
#: Of a copy, the moment as of which it held what another volume did: ISO 8601, UTC.
COPIED_LABEL = "fusevol.copied"
#: What the labels begin with that say whose storage a volume is.
STORAGE_LABELS = "fusevol.storage."
#: The one of them with what its owner calls it.
TAG_LABEL = f"{STORAGE_LABELS}tag"

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_VALUE_MAX = 255


def pool_of(volume: Volume) -> str:
    """The pool that a volume is in, or is to be made in."""
    return volume.locator.volume_labels.get(POOL_LABEL, DEFAULT_POOL)


def check_labels(labels: Mapping[str, str], *, made: bool = False) -> None:
    """Raise InvalidArgument for labels that users cannot set.

    made: the one is allowed that chooses the pool a volume is made in.
    """
    for key, value in labels.items():
        if key.startswith(RESERVED_LABELS) and not (made and key == POOL_LABEL):
            raise InvalidArgument(f"label {key!r}: labels that begin with {RESERVED_LABELS!r} are not yours to set")
        if not _KEY.fullmatch(key):
            raise InvalidArgument(
                f"{key[:140]!r} is not the key of a label",
                hint="use 1 to 128 letters, digits, '_', '.', '/' and '-', starting with a letter or digit",
            )
        if len(value) > _VALUE_MAX or not value.isprintable():
            raise InvalidArgument(f"label {key!r}: a value has at most {_VALUE_MAX} characters, all of them printable")


def own_labels(volume: Volume) -> dict[str, str]:
    """The labels that users gave a volume."""
    labels = volume.locator.volume_labels
    return {key: value for key, value in labels.items() if not key.startswith(RESERVED_LABELS)}


def with_labels(record: Volume, labels: Mapping[str, str]) -> Volume:
    """The record of a volume that has these labels besides its own."""
    both = {**record.locator.volume_labels, **labels}
    return msgspec.structs.replace(record, locator=msgspec.structs.replace(record.locator, volume_labels=both))


def without_labels(record: Volume, prefix: str) -> Volume:
    """The record of a volume without the labels that begin so."""
    kept = {key: text for key, text in record.locator.volume_labels.items() if not key.startswith(prefix)}
    return msgspec.structs.replace(record, locator=msgspec.structs.replace(record.locator, volume_labels=kept))
