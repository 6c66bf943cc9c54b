"""Labels as `KEY=VALUE` texts."""

from collections.abc import Iterable

from fusevol.errors import InvalidArgument

__all__ = ["parse_labels", "with_labels"]


def parse_labels(texts: Iterable[str], *, empty: bool = False) -> dict[str, str]:
    """Labels from `KEY=VALUE` texts. empty: an empty value is allowed; it removes the label.

    Raises InvalidArgument.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals or not (value or empty):
            raise InvalidArgument(f"label {text!r} is not of the form KEY=VALUE")
        labels = with_labels(labels, {key: value})
    return labels


def with_labels(labels: dict[str, str], more: dict[str, str]) -> dict[str, str]:
    """Both. Raises InvalidArgument for a label that is in both."""
    if both := labels.keys() & more.keys():
        raise InvalidArgument(f"label {min(both)!r} is given twice")
    return labels | more
