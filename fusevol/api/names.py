"""Names of volumes and snapshots, and the `volume@snapshot` form that refers to either."""

import re
from typing import NamedTuple

from fusevol.errors import InvalidArgument

__all__ = ["VolumeRef", "by_name", "check_name", "parse_volume_ref"]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


class VolumeRef(NamedTuple):
    """A volume, or where `snapshot` is set, that snapshot of it. Each part is a name or an id."""

    volume: str
    snapshot: str | None = None

    def __str__(self) -> str:
        """The text that `parse_volume_ref` takes."""
        return self.volume if self.snapshot is None else f"{self.volume}@{self.snapshot}"


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if a volume or snapshot may be called that; `what` is how an error calls it.

    A name has 1 to 128 ASCII letters, digits, `_`, `.` and `-`, and starts with a letter or digit.

    Raises InvalidArgument.
    """
    if _NAME.fullmatch(name):
        return name
    shown = name if len(name) <= 140 else name[:140] + "..."
    raise InvalidArgument(
        f"{what} {shown!r} is not a valid name",
        hint="use 1 to 128 letters, digits, '_', '.' and '-', starting with a letter or digit",
    )


def by_name(text: str, volume_id: str, name: str) -> str:
    """A text that names a volume by its id, with its name instead. Where the id is in a path, it is a directory's."""
    return re.sub(rf"(?<![/\w]){re.escape(volume_id)}(?!/)", lambda _: name, text)


def parse_volume_ref(text: str) -> VolumeRef:
    """Read `volume` or `volume@snapshot`. Raises InvalidArgument."""
    volume, at, snapshot = text.partition("@")
    check_name(volume, "volume")
    return VolumeRef(volume, check_name(snapshot, "snapshot") if at else None)
