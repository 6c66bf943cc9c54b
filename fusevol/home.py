"""The state directory of this host, its configuration, and the pools that volumes are made in.

<home>/fusevol.db     records of the volumes, and locks
<home>/config.toml    configuration; need not exist
<home>/volumes/       data of the pool `default`, unless that is configured otherwise
<home>/cache/         what mounted volumes of remote pools keep at hand; not needed when they are not mounted

# config.toml
lock_timeout = 10            # seconds that a command waits for another one on the same volume

[pools.fast]                 # a pool: a backend, and its parameters
backend = "file"
path = "/mnt/nvme/volumes"

[pools.far]
backend = "object"
url = "s3://bucket/volumes"
cache_size = "20G"           # of each mounted volume, in cache/ of the state directory; 4G unless it says otherwise
key_file = "/etc/fusevol/far.key"    # what is stored is encrypted with it; fusevol pool key makes one

[drivers.shelf]              # parameters of an installed volume driver
url = "http://shelf:9000"
"""

import fcntl
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from fusevol.api.names import check_name
from fusevol.errors import BackendError, FusevolError, InvalidArgument
from fusevol.sizes import parse_size

__all__ = ["CONFIG_NAME", "DATABASE_NAME", "DEFAULT_POOL", "POOL_KEYS", "Config", "Home", "Pool", "default_home"]

DEFAULT_POOL = "default"
DATABASE_NAME = "fusevol.db"
CONFIG_NAME = "config.toml"

_LOCK_TIMEOUT = 10.0
_KEYS = ("lock_timeout", "pools", "drivers")
#: What a pool has besides the parameters of its backend.
POOL_KEYS = ("cache_size", "key_file")
_CACHE_SIZE = 4 << 30


class Pool(NamedTuple):
    """Where volumes can be made: a backend by name, and its parameters.

    cache_size: bytes that each mounted volume may cache on a local disk, where reads wait for other machines.
    key_file: path of the key that all is encrypted with which the pool stores; "" where it is stored as it is.
    """

    name: str
    backend: str
    attributes: Mapping[str, Any]
    cache_size: int = _CACHE_SIZE
    key_file: str = ""

    @property
    def directory(self) -> Path | None:
        """The directory of this host where its data is; None where it is elsewhere, as far as its parameters say."""
        place = self.attributes.get("path") or _local_path(str(self.attributes.get("url", "")))
        return Path(place) if isinstance(place, str) and os.path.isabs(place) and "\0" not in place else None


def _local_path(url: str) -> str:
    """The path of a file:// URL; "" for any other text."""
    try:
        found = urlsplit(url)
    except ValueError:
        return ""
    return unquote(found.path) if found.scheme == "file" and found.netloc in ("", "localhost") else ""


class Config(NamedTuple):
    """What config.toml says, and the defaults of what it leaves out."""

    pools: Mapping[str, Pool]
    lock_timeout: float = _LOCK_TIMEOUT
    #: Parameters of volume drivers, by their names.
    drivers: Mapping[str, Mapping[str, str]] = {}


class Home:
    """A state directory. Made without looking at it; what is in it is read when it is needed."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(os.path.abspath(path)) if path is not None else default_home()
        self._config: Config | None = None
        #: Which file that is of.
        self._stamp: tuple[int, ...] = ()

    @property
    def database(self) -> Path:
        """Where the records are."""
        return self.path / DATABASE_NAME

    @property
    def cache(self) -> Path:
        """Where mounted volumes of remote pools have their caches, each in a directory named by its id."""
        return self.path / "cache"

    @property
    def config_path(self) -> Path:
        """Where the configuration is, if there is any."""
        return self.path / CONFIG_NAME

    @property
    def config(self) -> Config:
        """The configuration as it was when it was first asked for, and the pools that were described since then.

        Whatever somebody does to the file, with an editor or by mistake, what is known goes on as it is. Raises
        InvalidArgument for a mistake in it, BackendError where it cannot be read, the first time.
        """
        stamp = self._stamp_of_file()
        if self._config is None:
            self._config = self._parsed(self._text(), str(self.config_path))
        elif stamp != self._stamp:
            with suppress(FusevolError):
                now = self._parsed(self._text(), str(self.config_path))
                self._config = self._config._replace(pools={**now.pools, **self._config.pools})
        self._stamp = stamp
        return self._config

    def _stamp_of_file(self) -> tuple[int, ...]:
        try:
            found = os.stat(self.config_path)
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _parsed(self, text: str, where: str) -> Config:
        return _parse(text, where, Pool(DEFAULT_POOL, "file", {"path": str(self.path / "volumes")}))

    def change_config(self, change: Callable[[str], str]) -> None:
        """Have `change` make another text of the configuration's. Blocks, while somebody else does the same.

        Nothing is written where `change` raises something, or what it makes is no configuration (InvalidArgument).
        Raises BackendError where it cannot be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Where it is a link, it stays one.
            real = Path(os.path.realpath(self.config_path))
            if real.exists() and not real.is_file():
                raise BackendError(f"{self.config_path} is no file")
            with _locked(self.path):
                text = self._text()
                self._parsed(text, str(self.config_path))
                text = change(text)
                config = self._parsed(text, f"{self.config_path}, as it would be")
                _replace(real, text)
                self._config, self._stamp = config, self._stamp_of_file()
        except OSError as error:
            raise BackendError(f"{self.config_path} cannot be written: {error.strerror}") from error

    def _text(self) -> str:
        try:
            return self.config_path.read_bytes().decode()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{self.config_path}: it is not UTF-8 text") from error
        except OSError as error:
            raise BackendError(f"{self.config_path} cannot be read: {error.strerror}") from error

    def place_of(self, *key: str) -> str:
        """Where the configuration has a key, for an error: file, line and key. Raises BackendError, InvalidArgument."""
        return _place(self._text(), str(self.config_path), key)

    def pool(self, name: str) -> Pool:
        """The pool of that name. Raises InvalidArgument where there is none."""
        pools = self.config.pools
        if name not in pools:
            raise InvalidArgument(
                f'there is no pool "{name}"; known: {", ".join(sorted(pools))}',
                hint=f"to describe it: fusevol pool add {name}",
            )
        return pools[name]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ends = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise BackendError(f"the configuration in {directory} is being changed by somebody else") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all. A new one can be read by its owner alone: it may hold credentials."""
    from fusevol.backends.systemcalls import fsync_directory

    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            with suppress(FileNotFoundError):
                before = os.stat(path)
                os.fchmod(fd, before.st_mode & 0o7777)
                os.fchown(fd, before.st_uid, before.st_gid)
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        os.rename(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


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
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: {error}") from None

    def mistake(what: str, *key: str) -> InvalidArgument:
        return InvalidArgument(f"{_place(text, where, key)}: {what}")

    for key in found:
        if key not in _KEYS:
            raise mistake(f"there is no such key; known: {', '.join(_KEYS)}", key)
    timeout = found.get("lock_timeout", _LOCK_TIMEOUT)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= 86400:
        raise mistake("it must be a number of seconds, at most 86400", "lock_timeout")
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, one in (("pools", "pool"), ("drivers", "driver")):
        tables[kind] = found.get(kind, {})
        if not isinstance(tables[kind], dict):
            raise mistake(f"it must be a table of {kind}", kind)
        for name, table in tables[kind].items():
            try:
                check_name(name, f"the name of a {one}")
            except InvalidArgument as error:
                raise mistake(str(error), kind, name) from None
            if not isinstance(table, dict):
                raise mistake(f"a {one} must be a table", kind, name)
            for attribute, value in table.items():
                # A pool has tables for options of the store's own.
                inner = value if isinstance(value, dict) and kind == "pools" else {"": value}
                for part, each in inner.items():
                    if not isinstance(each, str | int | float | bool):
                        where_in = (kind, name, attribute, *([part] if part else []))
                        raise mistake("it must be a text, a number, or true or false", *where_in)
    pools = {default.name: default}
    for name, table in tables["pools"].items():
        if "backend" not in table:
            raise mistake('the key "backend" is missing', "pools", name)
        if not isinstance(table["backend"], str):
            raise mistake("it must be the name of a backend", "pools", name, "backend")
        attributes = {key: value for key, value in table.items() if key not in ("backend", *POOL_KEYS)}
        if table["backend"] == "file" and not _is_path(attributes.get("path", os.sep)):
            raise mistake("it must be an absolute path", "pools", name, "path")
        try:
            cache_size = parse_size(str(table.get("cache_size", _CACHE_SIZE)))
        except ValueError as error:
            raise mistake(str(error), "pools", name, "cache_size") from None
        key_file = table.get("key_file", "")
        if "key_file" in table and not _is_path(key_file):
            raise mistake("it must be an absolute path", "pools", name, "key_file")
        pools[name] = Pool(name, table["backend"], attributes, cache_size, key_file)
    drivers = {
        name: {key: _text_of(value) for key, value in table.items()} for name, table in tables["drivers"].items()
    }
    return Config(pools, float(timeout), drivers)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and os.path.isabs(value) and "\0" not in value


def _text_of(value: str | float | bool) -> str:
    """A parameter of a driver, all of which are texts, as TOML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _place(text: str, where: str, key: Sequence[str]) -> str:
    line = _line_of(text, key)
    return f"{where}{f', line {line}' if line else ''}: {'.'.join(key)}"


def _line_of(text: str, key: Sequence[str]) -> int | None:
    """Line on which the statement begins that sets a key, or the table; counted from 1. None where none does."""
    lines, whole = text.split("\n"), 0
    for number in range(1, len(lines) + 1):
        try:
            found: Any = tomllib.loads("\n".join(lines[:number]))
        except ValueError:
            # Within a value of several lines.
            continue
        for part in key:
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return whole + 1
        whole = number
    return None
