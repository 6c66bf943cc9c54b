"""A pool, as a provider is told of it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final, TypeAlias

from fusevol.errors import InvalidArgument
from fusevol.storage.names import ProviderType, quoted

__all__ = ["CONFIG_STORAGE_DIR", "Attrs", "Config"]

#: Attributes of storage, by name (Attrs of the seed).
Attrs: TypeAlias = Mapping[str, Any]

#: The attribute that names the directory in which a machine keeps its storage (ConfigStorageDir of the seed).
CONFIG_STORAGE_DIR: Final = "storage-dir"


class Config:
    """What a source is made of (Config and NewConfig of the seed). Nothing changes one.

    Raises InvalidArgument for the name of an attribute that is no text.
    """

    def __init__(self, name: str, provider: ProviderType, attrs: Attrs) -> None:
        for key in attrs:
            if not isinstance(key, str):
                raise InvalidArgument(f"pool {quoted(name)}: the name of an attribute must be a text, not {key!r}")
        self._name = name
        self._provider = provider
        self._attrs = deepcopy(dict(attrs))

    @property
    def name(self) -> str:
        """The name of the pool; for people, since several may be called so."""
        return self._name

    @property
    def provider(self) -> ProviderType:
        """The name of its provider."""
        return self._provider

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of its attributes."""
        return deepcopy(self._attrs)

    def value_string(self, name: str) -> str | None:
        """The attribute of that name if it is a text, else None."""
        value = self._attrs.get(name)
        return value if isinstance(value, str) else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # its attributes may be anything

    def __repr__(self) -> str:
        # Without the attributes, some of which may be secret.
        return f"Config({self._name!r}, {self._provider!r})"
