"""What storage is, whose, and how it is reached."""

from enum import IntEnum, StrEnum

__all__ = ["DeviceType", "Scope", "StorageKind"]


class StorageKind(IntEnum):
    """What a store of data is (StorageKind of the seed)."""

    UNKNOWN = 0
    BLOCK = 1
    FILESYSTEM = 2

    def __str__(self) -> str:
        """Its name for people: "filesystem"."""
        return self.name.lower()


class Scope(IntEnum):
    """Who can manage the storage of a provider (Scope of the seed).

    ENVIRON: anybody who reaches the provider. MACHINE: the machine that has it, only.
    """

    ENVIRON = 0
    MACHINE = 1


class DeviceType(StrEnum):
    """How a volume gets to its machine (DeviceType of the seed)."""

    LOCAL = "local"
    ISCSI = "iscsi"
