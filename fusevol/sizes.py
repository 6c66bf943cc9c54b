"""Sizes in bytes, as people write and read them."""

import re
from decimal import Decimal

__all__ = ["format_size", "parse_size"]

_UNITS = "KMGTPE"
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE)
_MAX = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes of a size: `10G`, `10GiB` and `10GB` are all 10 x 2^30; `1.5T`; a bare number is bytes.

    Raises ValueError with the reason in words.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write it like 10G, 512MiB or 1048576")
    number, unit = Decimal(match[1]), match[2]
    size = number * 1024 ** (_UNITS.index(unit.upper()) + 1 if unit else 0)
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size > _MAX:
        raise ValueError(f"{text!r} is more than a volume can hold")
    return int(size)


def format_size(size: int) -> str:
    """A size in the binary unit in which it is between 1 and 1023, with up to one decimal: `1.5 GiB`."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in _UNITS:
        value /= 1024
        # What rounds to 1024.0 belongs to the next unit.
        if value < 1023.95 or unit == _UNITS[-1]:
            break
    text = f"{value:.1f}"
    return f"{text.removesuffix('.0')} {unit}iB"
