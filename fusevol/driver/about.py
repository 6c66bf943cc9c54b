"""What a volume says of itself in its manifest: its record, for those who have none of it."""

from contextlib import suppress

import msgspec

from fusevol.api import Volume, to_json

__all__ = ["about", "is_kept", "kept", "lasting"]


def lasting(record: Volume) -> Volume:
    """A volume's record without what is only so for the moment, on this host."""
    return Volume(
        id=record.id, locator=record.locator, source=record.source, ctime=record.ctime, spec=record.spec,
        format=record.format,
    )  # fmt: skip


def about(record: Volume) -> str:
    """What a volume is to say of itself: JSON, from which `api.from_json` makes the lasting record again."""
    return to_json(lasting(record)).decode()


class _Spec(msgspec.Struct):
    ephemeral: bool = False


class _Known(msgspec.Struct):
    """What is looked at of any version's."""

    spec: _Spec


def is_kept(text: str) -> bool:
    """Whether a volume does not say of itself that it is ephemeral: what cannot be read is not to be thrown away."""
    with suppress(msgspec.MsgspecError):
        return not msgspec.json.decode(text, type=_Known).spec.ephemeral
    return True


def kept(record: Volume) -> Volume:
    """The record of a volume that is not ephemeral any more."""
    return msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, ephemeral=False))
