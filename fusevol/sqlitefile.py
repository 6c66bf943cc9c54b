"""What files of SQLite's virtual file systems have in common where nobody else is there while SQLite is.

In the metadata of a volume (`fs.vfs`), since one process has one connection; in the tables of a device
(`backends.device.tablefile`), since whoever comes to SQLite holds a lock already.
"""

__all__ = ["SoleFile"]

#: Bytes that are read and written at once.
_PAGE = 4096


class SoleFile:
    """Files that need no locks and hold nothing, with pages of 4096 bytes."""

    def xSectorSize(self) -> int:  # noqa: D102, N802
        return _PAGE

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: D102, N802
        return False

    def xCheckReservedLock(self) -> bool:  # noqa: D102, N802
        return False

    def xLock(self, level: int) -> None:  # noqa: N802
        """There is nobody to lock out."""

    xUnlock = xLock  # noqa: N815

    def xClose(self) -> None:  # noqa: N802
        """Nothing is held."""
