"""Naming what a command is about."""

from fusevol.api import parse_volume_ref
from fusevol.errors import InvalidArgument

__all__ = ["parse_snapshot_ref"]


def parse_snapshot_ref(text: str) -> tuple[str, str]:
    """Volume and snapshot of `VOL@SNAP`. Raises InvalidArgument."""
    ref = parse_volume_ref(text)
    if ref.snapshot is None:
        raise InvalidArgument(f'"{text}" names no snapshot', hint=f"write it as {text}@NAME")
    return ref.volume, ref.snapshot
