"""Docker's volume plugin protocol, version 1: what dockerd asks, and the shape of the answers.

All requests are POST with a JSON object; names of fields are dockerd's. Fields that this version does not know are let
through, since newer engines may send more.
"""

import msgspec

__all__ = ["CreateRequest", "Empty", "MountRequest", "NameRequest", "VolumeAnswer"]


class Empty(msgspec.Struct, frozen=True):
    """Nothing is asked for in particular."""


class NameRequest(msgspec.Struct, frozen=True):
    """A volume by name."""

    name: str = msgspec.field(name="Name")


class CreateRequest(NameRequest, frozen=True):
    """A new volume, and its options (`docker volume create -o`)."""

    opts: dict[str, str] | None = msgspec.field(default=None, name="Opts")


class MountRequest(NameRequest, frozen=True):
    """A use of a volume, and the id that dockerd gave to it."""

    id: str = msgspec.field(name="ID")


class VolumeAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A volume. mountpoint: "" while it is not mounted for Docker. status: of the moment, for people."""

    name: str = msgspec.field(name="Name")
    mountpoint: str = msgspec.field(default="", name="Mountpoint")
    created_at: str = msgspec.field(default="", name="CreatedAt")
    status: dict[str, object] = msgspec.field(default_factory=dict, name="Status")
