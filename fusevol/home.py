"""The state directory of this host, its configuration, and the pools that volumes are made in.

<home>/fusevol.db     records of the volumes, and locks
<home>/config.toml    configuration; need not exist
<home>/volumes/       data of the pool `default`, unless that is configured otherwise

# config.toml
lock_timeout = 10            # seconds that a command waits for another one on the same volume

[pools.fast]                 # a pool: a backend, and its parameters
backend = "file"
path = "/mnt/nvme/volumes"
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusevol.api.names import check_name
from fusevol.errors import BackendError, InvalidArgument

__all__ = ["CONFIG_NAME", "DATABASE_NAME", "DEFAULT_POOL", "Config", "Home", "Pool", "default_home"]

DEFAULT_POOL = "default"
DATABASE_NAME = "fusevol.db"
CONFIG_NAME = "config.toml"

_LOCK_TIMEOUT = 10.0
_KEYS = ("lock_timeout", "pools")


class Pool(NamedTuple):
    """Where volumes can be made: a backend by name, and its parameters."""

    name: str
    backend: str
    attributes: Mapping[str, Any]


class Config(NamedTuple):
    """What config.toml says, and the defaults of what it leaves out."""

    pools: Mapping[str, Pool]
    lock_timeout: float = _LOCK_TIMEOUT


class Home:
    """A state directory. Made without looking at it; what is in it is read when it is needed."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(os.path.abspath(path)) if path is not None else default_home()
        self._config: Config | None = None

    @property
    def database(self) -> Path:
        """Where the records are."""
        return self.path / DATABASE_NAME

    @property
    def config_path(self) -> Path:
        """Where the configuration is, if there is any."""
        return self.path / CONFIG_NAME

    @property
    def config(self) -> Config:
        """The configuration. Raises InvalidArgument for a mistake in it, BackendError where it cannot be read."""
        if self._config is None:
            default = Pool(DEFAULT_POOL, "file", {"path": str(self.path / "volumes")})
            try:
                text = self.config_path.read_text(encoding="utf-8")
            except (FileNotFoundError, NotADirectoryError):
                text = ""
            except UnicodeDecodeError as error:
                raise InvalidArgument(f"{self.config_path}: it is not UTF-8 text") from error
            except OSError as error:
                raise BackendError(f"{self.config_path} cannot be read: {error.strerror}") from error
            self._config = _parse(text, str(self.config_path), default)
        return self._config

    def pool(self, name: str) -> Pool:
        """The pool of that name. Raises InvalidArgument where there is none."""
        pools = self.config.pools
        if name not in pools:
            raise InvalidArgument(
                f'there is no pool "{name}"; known: {", ".join(sorted(pools))}',
                hint=f"describe it in {self.config_path}",
            )
        return pools[name]


def default_home() -> Path:
    """$FUSEVOL_HOME, or /var/lib/fusevol for root, or the XDG state directory."""
    if chosen := os.environ.get("FUSEVOL_HOME"):
        return Path(os.path.abspath(chosen))
    if os.geteuid() == 0:
        return Path("/var/lib/fusevol")
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification has relative paths ignored.
    base = Path(state) if os.path.isabs(state) else _user_home() / ".local" / "state"
    return base / "fusevol"


def _user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise BackendError(
            "there is no home directory to keep state in", hint="set FUSEVOL_HOME, or use --home"
        ) from None


def _parse(text: str, where: str, default: Pool) -> Config:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{where}: {error}") from None

    def mistake(key: str, what: str) -> InvalidArgument:
        line = _line_of(text, key)
        return InvalidArgument(f"{where}{f', line {line}' if line else ''}: {key}: {what}")

    for key in found:
        if key not in _KEYS:
            raise mistake(key, f"there is no such key; known: {', '.join(_KEYS)}")
    timeout = found.get("lock_timeout", _LOCK_TIMEOUT)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= 86400:
        raise mistake("lock_timeout", "it must be a number of seconds, at most 86400")
    tables = found.get("pools", {})
    if not isinstance(tables, dict):
        raise mistake("pools", "it must be a table of pools")
    pools = {default.name: default}
    for name, table in tables.items():
        key = f"pools.{name}"
        try:
            check_name(name, "the name of a pool")
        except InvalidArgument as error:
            raise mistake(key, str(error)) from None
        if not isinstance(table, dict):
            raise mistake(key, "a pool must be a table")
        if "backend" not in table:
            raise mistake(key, 'the key "backend" is missing')
        if not isinstance(table["backend"], str):
            raise mistake(f"{key}.backend", "it must be the name of a backend")
        attributes = {attribute: value for attribute, value in table.items() if attribute != "backend"}
        for attribute, value in attributes.items():
            if not isinstance(value, str | int | float | bool):
                raise mistake(f"{key}.{attribute}", "it must be a text, a number, or true or false")
        pools[name] = Pool(name, table["backend"], attributes)
    return Config(pools, float(timeout))


def _line_of(text: str, key: str) -> int | None:
    """Line on which a dotted key is set or its table begins, as far as that can be told; counted from 1."""
    parts = key.split(".")
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\]]+)\]", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if table[: len(parts)] == parts:
                return number
        elif setting := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            own = [part.strip("\"'") for part in setting[1].split(".")]
            if [*table, *own][: len(parts)] == parts:
                return number
    return None
