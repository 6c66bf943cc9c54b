"""A pool in the text of config.toml: put there, and taken out, with nothing else of it changed."""

import re
import tomllib
from typing import Any

from fusevol.errors import AlreadyExists, InvalidArgument, NotSupported
from fusevol.storage.config import Config
from fusevol.storage.names import quoted

__all__ = ["with_other_pool", "with_pool", "without_pool"]

_HEADER = re.compile(r"\s*\[")


def with_pool(text: str, config: Config) -> str:
    """The text with a pool at its end. Raises AlreadyExists, NotSupported where pools are written in one line."""
    import tomli_w

    wanted = tomllib.loads(text)
    table = {"backend": config.provider, **config.attrs}
    if config.name in wanted.setdefault("pools", {}):
        raise AlreadyExists(f"pool {quoted(config.name)} already exists")
    wanted["pools"][config.name] = table
    newline = "\r\n" if "\r\n" in text else "\n"
    added = tomli_w.dumps({"pools": {config.name: table}}).replace("\n", newline)
    before = text if not text or text.endswith("\n") else text + newline
    return _checked(before + (newline if before else "") + added, wanted)


def with_other_pool(text: str, config: Config) -> str:
    """The text with a pool in place of what it has of that name, if anything. Raises NotSupported."""
    described = config.name in tomllib.loads(text).get("pools", {})
    return with_pool(without_pool(text, config.name) if described else text, config)


def without_pool(text: str, name: str) -> str:
    """The text without a pool. Raises InvalidArgument where it has none, NotSupported where it is written otherwise."""
    wanted = tomllib.loads(text)
    if name not in wanted.get("pools", {}):
        raise InvalidArgument(f"pool {quoted(name)} is not described")
    del wanted["pools"][name]
    its = re.compile(rf"""\s*\[\s*(["']?)pools\1\s*\.\s*(["']?){re.escape(name)}\2\s*[].]""")
    kept: list[str] = []
    dropped: list[str] = []
    inside = False
    # Not what else ends lines elsewhere: in a comment, it is a part of that.
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if _HEADER.match(line):
            if inside:
                # What stands right before the next table belongs to that.
                kept += dropped[_end_of_table(dropped) :]
            inside, dropped = bool(its.match(line)), []
        (dropped if inside else kept).append(line)
    if inside:
        kept += dropped[_end_of_table(dropped) :]
    return _checked("".join(kept), wanted)


def _end_of_table(lines: list[str]) -> int:
    """Behind which line there are only comments and blanks."""
    return max(number for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#"))


def _checked(text: str, wanted: dict[str, Any]) -> str:
    """The text, if it says what is wanted: there are many ways to write tables, and this knows the usual one."""
    try:
        found = tomllib.loads(text)
    except ValueError:
        found = {"": "nothing that could be read"}
    # A table of no pools at all is as good as none.
    if {"pools": {}, **found} != {"pools": {}, **wanted}:
        raise NotSupported(
            "config.toml is written in a way that it cannot be changed by a program", hint="change it with an editor"
        )
    return text
