"""What pools and providers are called, and how errors quote it."""

import json
import re
from typing import TypeAlias

__all__ = ["ProviderType", "is_valid_pool_name", "quoted"]

#: The name of a kind of storage provider; here, of a backend: "file".
ProviderType: TypeAlias = str

_POOL = re.compile(r"[a-zA-Z]+[-?a-zA-Z0-9]*")


def is_valid_pool_name(text: str) -> bool:
    """Whether directives can name a pool so (IsValidPoolName of the seed)."""
    return _POOL.fullmatch(text) is not None


def quoted(text: str) -> str:
    """A text that somebody gave, for an error: in quotes, and on one line."""
    return json.dumps(text)
