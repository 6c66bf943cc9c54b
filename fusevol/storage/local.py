"""The pools of a state directory as storage: a provider for each kind of backend, a source for each pool.

A filesystem is a volume of that pool, known by the volume's id, and attached where it is mounted. Labels that nobody
else sets, and that clones and copies do not have, say whose it is: TAG_LABEL what the model calls it, and labels that
begin with RESOURCE_LABELS its resource tags. A volume without them is left alone, until it is imported.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from fusevol.backends import available, check_parameters, load
from fusevol.driver import LocalDriver
from fusevol.errors import DriverNotFound, InvalidArgument, NotSupported
from fusevol.home import POOL_KEYS, Pool
from fusevol.sizes import parse_size
from fusevol.storage.config import CONFIG_STORAGE_DIR, Config
from fusevol.storage.enums import Scope, StorageKind
from fusevol.storage.kubernetes import (
    K8S_STORAGE_CLASS,
    K8S_STORAGE_MEDIUM,
    K8S_STORAGE_MODE,
    K8S_STORAGE_PROVISIONER,
    check_kubernetes_attrs,
)
from fusevol.storage.localsource import LocalFilesystemSource
from fusevol.storage.names import ProviderType, quoted
from fusevol.storage.provider import Provider, ProviderRegistry, VolumeSource

__all__ = ["LocalProvider", "local_provider_registry"]

#: Attributes of a pool that its backend is not given.
_CACHE_SIZE, _KEY_FILE = POOL_KEYS
_NOT_THE_BACKENDS: Final = (CONFIG_STORAGE_DIR, *POOL_KEYS)
#: What a claim of a pod can be: a volume has one writer.
_MODES: Final = ("ReadWriteOnce", "RWO")


class LocalProvider(Provider):
    """Filesystems in those pools of a driver that have one kind of backend; its type is that backend's name."""

    dynamic = True
    releasable = True

    def __init__(self, driver: LocalDriver, backend: ProviderType) -> None:
        """Raises DriverNotFound where there is no such backend."""
        self._driver = driver
        self._type = backend
        self._backend = load(backend)

    @property
    def scope(self) -> Scope:
        """ENVIRON where the backend is one that other machines reach as well."""
        return Scope.ENVIRON if self._backend.traits.remote else Scope.MACHINE

    def supports(self, kind: StorageKind) -> bool:
        """Filesystems alone."""
        return kind is StorageKind.FILESYSTEM

    def volume_source(self, config: Config) -> VolumeSource:
        """Raises NotSupported: there are no devices."""
        raise NotSupported("volumes not supported")

    def filesystem_source(self, config: Config) -> LocalFilesystemSource:
        """The source that a pool of this state directory is.

        Raises InvalidArgument where there is no such pool, or it is not as `config` has it.
        """
        self._check_type(config)
        pools = self._pools()
        if config.name not in pools:
            raise InvalidArgument(
                f"pool {quoted(config.name)} not found", hint=f"to describe it: fusevol pool add {config.name}"
            )
        pool = pools[config.name]
        known = {**pool.attributes, CONFIG_STORAGE_DIR: str(pool.directory)}
        known |= {_CACHE_SIZE: pool.cache_size, _KEY_FILE: pool.key_file}
        for key, value in config.attrs.items():
            if known.get(key) != (_size(value) if key == _CACHE_SIZE else value):
                raise InvalidArgument(f"pool {quoted(pool.name)} has another {quoted(key)} than that")
        return LocalFilesystemSource(self._driver, self._type, pool.name)

    def _pools(self) -> Mapping[str, Pool]:
        pools = self._driver.context.home.config.pools
        return {name: pool for name, pool in pools.items() if pool.backend == self._type}

    def default_pools(self) -> list[Config]:
        """The pools of this state directory that have the backend."""
        return [_config_of(pool) for pool in self._pools().values()]

    def validate_config(self, config: Config) -> None:
        """Check what describes a pool. Nothing is asked of where it is. Raises InvalidArgument."""
        self._check_type(config)
        attrs = config.attrs
        for key, value in attrs.items():
            if not (_can_be_written(value) and _can_be_written(key)):
                raise InvalidArgument(f"{key!r}: it must be a printable text, a number, or true or false")
        if not isinstance(attrs.get("url", ""), str):
            raise InvalidArgument("'url': it must be a text")
        if not os.path.isabs(str(attrs.get("path", os.sep))):
            raise InvalidArgument("'path': it must be an absolute path")
        if _KEY_FILE in attrs and not os.path.isabs(str(attrs[_KEY_FILE])):
            raise InvalidArgument(f"{_KEY_FILE!r}: it must be an absolute path")
        _size(attrs.get(_CACHE_SIZE, 0))
        parameters = {key: attrs[key] for key in attrs if key not in _NOT_THE_BACKENDS}
        check_parameters(self._type, parameters, besides=POOL_KEYS)

    def _check_type(self, config: Config) -> None:
        if config.provider != self._type:
            raise InvalidArgument(f"pool {quoted(config.name)} has the provider {quoted(config.provider)}")

    def validate_for_k8s(self, attrs: Mapping[str, Any]) -> None:
        """Raises NotSupported for all but a mode in which one writes: a volume is mounted by a host, on its disks."""
        check_kubernetes_attrs(attrs)
        if (mode := attrs.get(K8S_STORAGE_MODE)) not in (None, *_MODES):
            raise NotSupported(f"storage mode {quoted(str(mode))} not supported: a volume has one writer")
        for key in (K8S_STORAGE_CLASS, K8S_STORAGE_PROVISIONER, K8S_STORAGE_MEDIUM):
            if attrs.get(key):
                raise NotSupported(f"{key} not supported: volumes are mounted by the host")


def _size(value: object) -> int:
    try:
        return parse_size(str(value))
    except ValueError as error:
        raise InvalidArgument(f"{_CACHE_SIZE!r}: {error}") from None


def _can_be_written(value: object) -> bool:
    """Whether a table of config.toml can have that, and a person can read it there."""
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
        return all(not isinstance(each, Mapping) and _can_be_written(each) for each in inner)
    if isinstance(value, float):
        return math.isfinite(value)
    return value.isprintable() if isinstance(value, str) else isinstance(value, int)


def _config_of(pool: Pool) -> Config:
    ours = {key: getattr(pool, key) for key in POOL_KEYS}
    said = {key: value for key, value in ours.items() if value != Pool._field_defaults[key]}
    return Config(pool.name, pool.backend, {**pool.attributes, **said})


class _LocalProviders(ProviderRegistry):
    """A provider for every backend that is installed, can be loaded, and keeps what it is given."""

    def __init__(self, driver: LocalDriver) -> None:
        self._driver = driver

    def storage_provider_types(self) -> list[ProviderType]:
        return [name for name in available() if self._is_one(name)]

    def storage_provider(self, provider_type: ProviderType) -> LocalProvider:
        # Only the one that is asked for is loaded: a store's client takes its time.
        if provider_type not in available() or not self._is_one(provider_type):
            known = ", ".join(self.storage_provider_types())
            raise DriverNotFound(f"storage provider {quoted(provider_type)} not found", hint=f"there are: {known}")
        return LocalProvider(self._driver, provider_type)

    def _is_one(self, name: str) -> bool:
        try:
            return load(name).traits.durable
        except DriverNotFound:
            return False


def local_provider_registry(driver: LocalDriver) -> ProviderRegistry:
    """The providers of the pools of a driver's state directory."""
    return _LocalProviders(driver)
