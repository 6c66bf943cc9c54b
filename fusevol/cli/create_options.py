"""Options of a new volume as `k=v` texts: what `fusevol create --opt` takes. Strict: what is not known is an error."""

from collections.abc import Sequence
from typing import NamedTuple

from fusevol.errors import InvalidArgument
from fusevol.sizes import parse_size

__all__ = ["KNOWN", "CreateOptions", "parse_create_options"]

#: What can be said, and what it is for.
KNOWN = {
    "size": "how much it may hold, as --size",
    "pool": "the pool to make it in, as --pool",
    "from": "what it is a clone of, as --from",
    "sticky": "true or false, as --sticky",
    "control": "rw, ro or off: the control directory of its mounts, unless they say otherwise",
    "mount": "mount options that its mounts have, unless they say otherwise: noatime,nosuid",
}
_BOOLEANS = {"true": True, "false": False}


class CreateOptions(NamedTuple):
    """What options said; None, or nothing, where they did not."""

    size: int | None = None
    pool: str | None = None
    source: str | None = None
    sticky: bool | None = None
    #: As of mount(8): flags with the value "".
    mount: dict[str, str] | None = None


def parse_create_options(texts: Sequence[str]) -> CreateOptions:
    """Read `KEY=VALUE` texts. Raises InvalidArgument for a key that is unknown or given twice, and for a bad value."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in KNOWN:
            raise InvalidArgument(f"there is no option {key!r}; known: {', '.join(KNOWN)}")
        if not equals or not value:
            raise InvalidArgument(f"option {key!r} is not of the form {key}=VALUE", hint=f"{key}: {KNOWN[key]}")
        if key in found:
            raise InvalidArgument(f"option {key!r} is given twice")
        found[key] = value
    if "sticky" in found and found["sticky"] not in _BOOLEANS:
        raise InvalidArgument(f"option 'sticky': {found['sticky']!r} is neither true nor false")
    return CreateOptions(
        size=_size(found["size"]) if "size" in found else None,
        pool=found.get("pool"),
        source=found.get("from"),
        sticky=_BOOLEANS[found["sticky"]] if "sticky" in found else None,
        mount=_mount(found),
    )


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidArgument(f"option 'size': {error}") from None


def _mount(found: dict[str, str]) -> dict[str, str] | None:
    """The mount options of `mount` and `control`, once they are known to be some."""
    options = {}
    for word in found.get("mount", "").split(","):
        key, _, value = word.partition("=")
        if key == "control":
            raise InvalidArgument("option 'mount': the control directory has an option of its own", hint="control=ro")
        if key:
            options[key] = value
    if "control" in found:
        options["control"] = found["control"]
    if not options:
        return None
    from fusevol.driver.server import mount_options

    mount_options(options, "volume")
    return options
