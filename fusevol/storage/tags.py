"""Tags: what the owner of a model calls machines, units, and the storage that they have.

An id is for people, `mysql/0`; its tag says of what kind it is, and can be a file name: `unit-mysql-0`. They are those
of Juju's `names` package.
"""

import re
from typing import ClassVar, Self

import msgspec

from fusevol.errors import InvalidArgument
from fusevol.storage.names import quoted

__all__ = ["FilesystemTag", "MachineTag", "StorageTag", "Tag", "UnitTag", "VolumeTag", "parse_tag"]

_NUMBER = r"(?:0|[1-9][0-9]*)"
_NAME = r"[a-z][a-z0-9]*(?:-[a-z0-9]*[a-z][a-z0-9]*)*"
#: A container is on a machine, and so on.
_MACHINE = rf"{_NUMBER}(?:/[a-z]+/{_NUMBER})*"
_UNIT = rf"{_NAME}/{_NUMBER}"
_OWNED = rf"(?:(?:{_MACHINE}|{_UNIT})/)?{_NUMBER}"


class Tag(msgspec.Struct, frozen=True):
    """Something's id, which is checked, and as text the tag. Raises InvalidArgument for what is no such id."""

    id: str

    kind: ClassVar[str]
    _pattern: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.is_valid(self.id):
            raise InvalidArgument(f"{quoted(self.id)} is not a valid {self.kind} ID")

    def __str__(self) -> str:
        """The tag: "volume-0-1"."""
        return f"{self.kind}-{self.id.replace('/', '-')}"

    @classmethod
    def is_valid(cls, text: str) -> bool:
        """Whether a text is an id of this kind."""
        return re.fullmatch(cls._pattern, text) is not None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a tag of this kind. Raises InvalidArgument."""
        tag = parse_tag(text)
        if not isinstance(tag, cls):
            raise InvalidArgument(f"{quoted(text)} is not a valid {cls.kind} tag")
        return tag

    @classmethod
    def _ids(cls, rest: str) -> list[str]:
        """What may be the id where that is behind the kind in a tag; the first one that is valid is it."""
        # A name has hyphens of its own, so what is not a machine's has at most two slashes.
        return [rest.replace("-", "/"), "/".join(rest.rsplit("-", 1)), "/".join(rest.rsplit("-", 2))]


class MachineTag(Tag, frozen=True):
    """A machine, `0`, or a container on one, `0/lxc/1`."""

    kind = "machine"
    _pattern = _MACHINE


class UnitTag(Tag, frozen=True):
    """A unit of an application, `mysql/0`."""

    kind = "unit"
    _pattern = _UNIT


class StorageTag(Tag, frozen=True):
    """A storage instance of an application or unit, `data/0`."""

    kind = "storage"
    _pattern = _UNIT


class VolumeTag(Tag, frozen=True):
    """A volume, `1`, or that of a machine, `0/1`, or of a unit, `mysql/0/1`."""

    kind = "volume"
    _pattern = _OWNED


class FilesystemTag(Tag, frozen=True):
    """A filesystem, with ids as volumes have them."""

    kind = "filesystem"
    _pattern = _OWNED


_KINDS: dict[str, type[Tag]] = {kind.kind: kind for kind in (MachineTag, UnitTag, StorageTag, VolumeTag, FilesystemTag)}


def parse_tag(text: str) -> Tag:
    """Read a tag of any kind. Raises InvalidArgument."""
    kind, hyphen, rest = text.partition("-")
    if not hyphen or kind not in _KINDS or "/" in rest:
        raise InvalidArgument(f"{quoted(text)} is not a valid tag")
    for found in filter(_KINDS[kind].is_valid, _KINDS[kind]._ids(rest)):
        return _KINDS[kind](found)
    raise InvalidArgument(f"{quoted(text)} is not a valid {kind} tag")
