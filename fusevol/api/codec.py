"""JSON in and out of the volume model: strict on the way in, and no secret on the way out."""

from typing import Any, Final, TypeVar

import msgspec

from fusevol.errors import InvalidArgument

__all__ = ["Secret", "from_json", "to_json"]

T = TypeVar("T")

#: Longest message that is made of somebody else's input, in characters.
_MESSAGE_MAX: Final = 200


class Secret:
    """A text that never shows: not in a repr, a log line, a record or a pickle. `reveal` gives it back."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that uses it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is never serialised")


def to_json(obj: object) -> bytes:
    """`obj`, a record of the volume model or a plain container of them, as JSON.

    Times are RFC 3339 in UTC, sizes numbers of bytes. A Secret comes out as null.

    Raises InvalidArgument for text that is not Unicode.
    """
    try:
        return msgspec.json.encode(obj, enc_hook=_hide)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{type(obj).__name__}: text is not valid Unicode") from error


def from_json(data: bytes | str, kind: type[T]) -> T:
    """Read a `kind` from JSON.

    Unknown and missing fields, values of another type and values out of range are refused.

    Raises InvalidArgument with a message of one line that names the field.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_conceal)
    except UnicodeError as error:
        raise InvalidArgument(f"{_name_of(kind)}: text is not valid Unicode") from error
    except msgspec.DecodeError as error:
        text, _, path = str(error).partition(" - at `$")
        where = _name_of(kind) + path.rstrip("`")
        if not text.startswith("JSON"):
            text = text[:1].lower() + text[1:]
        # The text may quote a field's name, which is the sender's to choose.
        what = "".join(c if c.isprintable() else "?" for c in text)
        raise InvalidArgument(f"{where}: {what[:_MESSAGE_MAX]}") from error


def _name_of(kind: type) -> str:
    return getattr(kind, "__name__", "value")


def _hide(value: Any) -> None:
    if not isinstance(value, Secret):
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _conceal(kind: type, value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    # msgspec adds the field's path to a TypeError's text.
    raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
