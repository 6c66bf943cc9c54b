"""Options of a volume as `KEY=VALUE` texts: `--opt` of `fusevol create` and `set`, `docker volume create -o`, REST.

Strict: what is not known is an error, and so is what has no meaning.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fusevol.errors import InvalidArgument, NotSupported
from fusevol.forms.labels import parse_labels
from fusevol.sizes import parse_size

if TYPE_CHECKING:
    from fusevol.api import Source, VolumeLocator, VolumeSpec
    from fusevol.driver import LocalDriver

__all__ = ["KNOWN", "CreateOptions", "option_texts", "parse_create_options", "throttle_texts"]

#: What can be said, and what it is for.
KNOWN = {
    "size": "how much it may hold, as --size",
    "pool": "the pool to make it in, as --pool",
    "from": "what it is a clone of, as --from",
    "sticky": "true or false, as --sticky",
    "ephemeral": "true or false: empty whenever it is mounted, as --ephemeral",
    "group": "the group of volumes that snapshots are taken of together",
    "secure": "true: only in a pool that encrypts; false: in any",
    "labels": "labels: k=v,k2=v2",
    "snap_interval": "minutes between snapshots, 0 for none",
    "snap_schedule": "when to take snapshots: daily=03:00,7;weekly=Sunday@04:00",
    "read_iops": "reads per second at most, 0 for no limit",
    "write_iops": "writes per second at most, 0 for no limit",
    "read_bw_mbytes": "10^6 bytes read per second at most, 0 for no limit",
    "write_bw_mbytes": "10^6 bytes written per second at most, 0 for no limit",
    "readahead": "true or false: whether the kernel reads ahead",
    "ro": "true or false: its mounts are read-only",
    "control": "rw, ro or off: the control directory of its mounts, unless they say otherwise",
    "mount": "mount options that its mounts have, unless they say otherwise: noatime,nosuid",
}
#: Other names of these, from openstorage.
_ALIASES = {
    "parent": "from", "mount_options": "mount", "snapshot_interval": "snap_interval",
    "snapshot_schedule": "snap_schedule",
}  # fmt: skip
#: What openstorage has, and this does not; with the value that says so, where there is one.
_ABSENT = {
    "block_size": "4096", "fs": "fuse", "format": "fuse", "io_profile": "", "cos": "", "shared": "false",
    "secret_key": "", "compressed": "false", "dedupe": "false",
}  # fmt: skip
#: By key, the field of a VolumeSpec it is.
_FIELDS = {
    "size": "size", "sticky": "sticky", "ephemeral": "ephemeral", "secure": "encrypted", "group": "group",
    "snap_interval": "snapshot_interval", "snap_schedule": "snapshot_schedule", "readahead": "readahead",
}  # fmt: skip
_BOUNDS = ("read_iops", "write_iops", "read_bw_mbytes", "write_bw_mbytes")
#: Where no value at all says that there is none.
_EMPTY = ("group", "snap_schedule", "mount")
_BOOLEANS = {"true": True, "false": False}
_NUMBER_MAX = 2**32


class CreateOptions(NamedTuple):
    """What options said; None, or nothing, where they did not.

    fields: of a VolumeSpec. bounds: fields of its io_throttle. mount: mount options, flags with the value "".
    """

    pool: str | None
    source: str | None
    labels: dict[str, str]
    fields: dict[str, Any]
    bounds: dict[str, int]
    mount: dict[str, str] | None
    control: str | None
    ro: bool | None

    async def request(self, driver: "LocalDriver", name: str) -> "tuple[VolumeLocator, Source | None, VolumeSpec]":
        """What `create` of a driver is to be given for a volume like this. Raises VolumeNotFound for its source."""
        from fusevol.api import Source, VolumeLocator, VolumeSpec
        from fusevol.driver.labels import POOL_LABEL

        labels = self.labels | ({} if self.pool is None else {POOL_LABEL: self.pool})
        source = None if self.source is None else Source(parent=(await driver.resolve(self.source)).id)
        return VolumeLocator(name=name, volume_labels=labels), source, self.applied_to(VolumeSpec())

    def applied_to(self, spec: "VolumeSpec") -> "VolumeSpec":
        """A spec with what options say about it."""
        import msgspec

        from fusevol.api import IoThrottle

        changes = dict(self.fields)
        if self.bounds:
            throttle = msgspec.structs.replace(spec.io_throttle or IoThrottle(), **self.bounds)
            changes["io_throttle"] = throttle if throttle != IoThrottle() else None
        control = spec.mount_options.get("control") if self.control is None else self.control
        mount = spec.mount_options if self.mount is None else self.mount
        changes["mount_options"] = {key: value for key, value in mount.items() if key != "control"}
        if control is not None:
            changes["mount_options"]["control"] = control
        if self.ro is not None:
            changes["mount_options"].pop("ro", None)
            changes["mount_options"].update({"ro": ""} if self.ro else {})
        return msgspec.structs.replace(spec, **changes)


def option_texts(options: Sequence[str] | None, flags: Mapping[str, object]) -> list[str]:
    """Options, and among them what flags of the command said: None for those not given, by key.

    Raises InvalidArgument where something is said both ways.
    """
    texts = list(options or ())
    said = {_ALIASES.get(key, key) for key in (text.partition("=")[0] for text in texts)}
    for key, value in flags.items():
        if value is None:
            continue
        if key in said:
            raise InvalidArgument(f"--{key.replace('_', '-')} and --opt {key}= are both given")
        texts.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return texts


def throttle_texts(text: str | None) -> list[str]:
    """The options that --throttle stands for: `read_iops=100,write_bw_mbytes=20`, or `none` to lift all bounds."""
    if text is None:
        return []
    if text == "none":
        return [f"{bound}=0" for bound in _BOUNDS]
    for word in text.split(","):
        if word.partition("=")[0] not in _BOUNDS:
            raise InvalidArgument(f"--throttle: {word!r} is no bound; there are: {', '.join(_BOUNDS)}")
    return text.split(",")


def parse_create_options(texts: Sequence[str], *, empty: bool = False) -> CreateOptions:
    """Read `KEY=VALUE` texts. empty: what says when, which or how may have no value, for none.

    Raises InvalidArgument for a key that is unknown or given twice, and for a bad value; NotSupported for what
    openstorage has and this does not.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = _ALIASES.get(key, key)
        if key in _ABSENT:
            if value.lower() == _ABSENT[key] != "":
                continue
            raise NotSupported(f"{key}: this driver does not support {value or 'it'}")
        if key not in KNOWN:
            raise InvalidArgument(f"there is no option {key!r}; known: {', '.join(KNOWN)}")
        if not equals or not (value or (empty and key in _EMPTY)):
            raise InvalidArgument(f"option {key!r} is not of the form {key}=VALUE", hint=f"{key}: {KNOWN[key]}")
        if key in found:
            raise InvalidArgument(f"option {key!r} is given twice")
        found[key] = value
    return CreateOptions(
        pool=found.get("pool"),
        source=found.get("from"),
        labels=parse_labels(found["labels"].split(",")) if "labels" in found else {},
        fields={field: _value(key, found[key]) for key, field in _FIELDS.items() if key in found},
        bounds={key: _number(key, found[key]) for key in _BOUNDS if key in found},
        mount=_mount(found["mount"]) if "mount" in found else None,
        control=_control(found.get("control")),
        ro=_boolean("ro", found["ro"]) if "ro" in found else None,
    )


def _value(key: str, text: str) -> object:
    if key == "size":
        try:
            return parse_size(text)
        except ValueError as error:
            raise InvalidArgument(f"option 'size': {error}") from None
    if key == "snap_interval":
        return _number(key, text)
    if key in ("group", "snap_schedule"):
        return text
    return _boolean(key, text)


def _boolean(key: str, text: str) -> bool:
    if text not in _BOOLEANS:
        raise InvalidArgument(f"option {key!r}: {text!r} is neither true nor false")
    return _BOOLEANS[text]


def _number(key: str, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_NUMBER_MAX)) else -1
    if not 0 <= number <= _NUMBER_MAX:
        raise InvalidArgument(f"option {key!r}: {text!r} is not a number from 0 to {_NUMBER_MAX}")
    return number


def _mount(text: str) -> dict[str, str]:
    """Mount options, once they are known to be some."""
    options = {key: value for key, _, value in (word.partition("=") for word in text.split(",")) if key}
    if "control" in options:
        raise InvalidArgument("option 'mount': the control directory has an option of its own", hint="control=ro")
    _check(options)
    return options


def _control(text: str | None) -> str | None:
    if text is not None:
        _check({"control": text})
    return text


def _check(options: Mapping[str, str]) -> None:
    if options:
        from fusevol.driver.server import mount_options

        mount_options(options, "volume")
