"""Storage directives: what somebody wants of storage, in one word, `fast,3,10G`."""

import math
import re
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

from fusevol.api import UINT64_MAX, Record
from fusevol.errors import InvalidArgument
from fusevol.storage.names import is_valid_pool_name, quoted

__all__ = ["Directive", "parse_directive", "parse_directives_map", "to_string"]

_COUNT = re.compile(r"-?[0-9]+")
_SIZE = re.compile(r"(?P<number>-?[0-9]+(\.[0-9]+)?)(?P<unit>[MGTPEZY])(i?B)?")
#: Digits of UINT64_MAX, which no count has more of.
_DIGITS = len(str(UINT64_MAX))


class Directive(Record, frozen=True, kw_only=True):
    """Directive of the seed. 0, or "", is what was not said.

    pool: name of the pool that must provide the storage; "" for the default one. size: MiB that each has at least.
    count: how many.
    """

    pool: str = ""
    size: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        self._check_uint64(("size", "count"))
        if self.pool and not is_valid_pool_name(self.pool):
            raise InvalidArgument(f"pool name {quoted(self.pool)} not valid")


def parse_directive(text: str) -> Directive:
    """Read POOL, COUNT and SIZE, in any order and separated by commas (ParseDirective of the seed).

    POOL is a letter, followed by letters, digits and hyphens (and `?`, as in Juju). COUNT is a positive integer, 1 if
    it is not said. SIZE is a number and a unit, M, G, T, P, E, Z or Y, of powers of 1024; it is rounded up to whole
    MiB. As in Juju, fields may be empty, a unit may have `B` or `iB` behind it, and 0 counts as not said.

    Raises InvalidArgument for what is none of these, is said twice, or where nothing is said.
    """
    pool, size, count, taken = "", 0, 0, "is already set to"
    for field in text.split(","):
        if not field:
            continue
        if is_valid_pool_name(field):
            if pool:
                raise InvalidArgument(f"pool name {taken} {quoted(pool)}, new value {quoted(field)} not valid")
            pool = field
        elif (number := _count(field)) is not None:
            if count:
                raise InvalidArgument(f"storage instance count {taken} {count}, new value {number} not valid")
            count = number
        elif (number := _size(field)) is not None:
            if size:
                raise InvalidArgument(f"storage size {taken} {size}, new value {number} not valid")
            size = number
        else:
            raise InvalidArgument(f"unrecognized storage directive {quoted(field)} not valid")
    if not (pool or size or count):
        raise InvalidArgument("storage directives require at least one field to be specified")
    return Directive(pool=pool, size=size, count=count or 1)


def _count(field: str) -> int | None:
    """The count that a field is; None where it is none."""
    if not _COUNT.fullmatch(field):
        return None
    digits = field.lstrip("0")
    if not digits or field.startswith("-"):
        raise InvalidArgument(f"cannot parse count: count must be greater than zero, got {quoted(field)}")
    if len(digits) > _DIGITS or int(digits) > UINT64_MAX:
        return None
    return int(digits)


def _size(field: str) -> int | None:
    """The MiB that a field is; None where it is no size."""
    found = _SIZE.fullmatch(field)
    if not found:
        return None
    if field.startswith("-"):
        raise InvalidArgument(f"cannot parse size: expected a non-negative number, got {quoted(field)}")
    # Not a float, whose 53 bits would make less than what was asked for of large numbers.
    size: int = math.ceil(Fraction(Decimal(found["number"])) * 1024 ** "MGTPEZY".index(found["unit"]))
    if size > UINT64_MAX:
        raise InvalidArgument(f"cannot parse size: {quoted(field)} is more than 2^64-1 MiB")
    return size


def parse_directives_map(args: Iterable[str], *, must_have_directives: bool = False) -> dict[str, Directive]:
    """Read texts `NAME=DIRECTIVE`, or `NAME`, which is `NAME=1` (ParseDirectivesMap of the seed).

    must_have_directives: the name alone is not enough. Raises InvalidArgument, also for a name that comes twice.
    """
    found: dict[str, Directive] = {}
    for arg in args:
        name, *rest = arg.split("=")
        if not name or len(rest) > 1:
            raise InvalidArgument(f'expected "name=directive" or "name", got {quoted(arg)}')
        if must_have_directives and not rest:
            raise InvalidArgument(f'expected "name=directive" where "directive" must be specified, got {quoted(arg)}')
        if name in found:
            raise InvalidArgument(f"storage {quoted(name)} specified more than once")
        try:
            found[name] = parse_directive(rest[0] if rest else "1")
        except InvalidArgument as error:
            error.args = (f"cannot parse directive for storage {quoted(name)}: {error}",)
            raise
    return found


def to_string(directive: Directive) -> str:
    """A text that `parse_directive` reads as that directive (ToString of the seed).

    Raises InvalidArgument for one that says nothing.
    """
    parts = [directive.pool, directive.count, f"{directive.size}M" if directive.size else ""]
    if not any(parts):
        raise InvalidArgument("must provide one of pool or size or count")
    return ",".join(str(part) for part in parts if part)
