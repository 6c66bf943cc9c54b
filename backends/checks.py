"""Checks of arguments that every backend makes before it does anything."""

import re

from fusevol.api.io import Buffer
from fusevol.errors import InvalidArgument

__all__ = ["MAX_END", "check_range", "check_volume_id", "flat"]

_VOLUME_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")

#: No byte at or beyond this offset: offsets must fit a signed 64-bit integer, as off_t does.
MAX_END = 2**63 - 1


def check_volume_id(volume_id: str) -> None:
    """Raise InvalidArgument unless `volume_id` is one that `Backend` allows."""
    if not _VOLUME_ID.fullmatch(volume_id):
        raise InvalidArgument(
            f"volume id {volume_id!r} is not allowed",
            hint="use 1 to 128 ASCII letters, digits, '-', '_' and '.', not starting with a dot",
        )


def check_range(size: int, offset: int) -> None:
    """Raise InvalidArgument unless `offset` and `size` name a range of bytes that can exist."""
    if offset < 0 or size < 0 or offset + size > MAX_END:
        raise InvalidArgument(f"no range of {size} bytes at offset {offset} can exist")


def flat(data: Buffer) -> memoryview:
    """`data` as a memoryview of single bytes, without a copy."""
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
