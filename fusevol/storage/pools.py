"""Making and removing the pools of a state directory, which are in its config.toml."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from fusevol.api import check_name
from fusevol.backends import open_backend
from fusevol.driver import LocalDriver
from fusevol.driver.context import pool_of
from fusevol.errors import AlreadyExists, BackendError, FusevolError, InvalidArgument, NotSupported, VolumeBusy
from fusevol.home import DEFAULT_POOL, Pool
from fusevol.storage.config import Attrs, Config
from fusevol.storage.names import ProviderType, is_valid_pool_name, quoted
from fusevol.storage.provider import ProviderRegistry

__all__ = ["PoolManager"]

#: Seconds that whoever keeps a new pool's data has to answer.
_PATIENCE: Final = 60.0

#: The tables of a TOML document: as dictionaries, or as what tomlkit makes of them, which behaves so.
_Tables: TypeAlias = Any


class PoolManager:
    """Pools by name, as Juju's pool manager has them. Who has read the configuration before goes on with that."""

    def __init__(self, driver: LocalDriver, registry: ProviderRegistry) -> None:
        self._driver = driver
        self._home = driver.context.home
        self._registry = registry

    def list(self) -> "list[Config]":
        """All pools, those included that there are without being made. Raises InvalidArgument, BackendError."""
        providers = map(self._registry.storage_provider, self._registry.storage_provider_types())
        return [config for provider in providers for config in provider.default_pools()]

    def get(self, name: str) -> Config:
        """The pool of that name. Raises InvalidArgument where there is none."""
        for pool in self.list():
            if pool.name == name:
                return pool
        raise _not_found(name)

    async def create(self, name: str, provider_type: ProviderType, attrs: Attrs) -> Config:
        """Make a pool. Whoever is to keep its data is asked for what is there.

        Raises InvalidArgument for a name, provider or attribute that will not do, AlreadyExists for the name,
        DriverNotFound for the provider, BackendError where nobody answers.
        """
        config = self._checked(name, provider_type, attrs)
        if name in self._home.config.pools:
            raise _exists(name)
        await self._ask(config)

        def add(tables: _Tables) -> None:
            # Unless somebody else was faster.
            if name in tables.get("pools", {}):
                raise _exists(name)
            _put(tables, config)

        await self._change(add)
        return config

    async def replace(self, name: str, provider_type: ProviderType, attrs: Attrs) -> Config:
        """Give a pool that has no volumes other attributes, and where one is said, another provider.

        Raises VolumeBusy where it has some, which would not be found any more, and as `create` does.
        """
        before = self.get(name)
        config = self._checked(name, provider_type or before.provider, attrs)
        await self._refuse_if_used(name, "changed")
        await self._ask(config)
        await self._change(lambda tables: _put(tables, config))
        return config

    async def delete(self, name: str) -> None:
        """Forget a pool; what may still be there stays. Raises VolumeBusy where it has volumes, InvalidArgument."""
        self.get(name)
        await self._refuse_if_used(name, "removed")

        def remove(tables: _Tables) -> None:
            if name not in tables.get("pools", {}):
                raise _not_found(name)
            del tables["pools"][name]

        if name == DEFAULT_POOL:
            raise InvalidArgument(f"pool {quoted(name)} is always there")
        await self._change(remove)

    def _checked(self, name: str, provider_type: ProviderType, attrs: Attrs) -> Config:
        if not name:
            raise InvalidArgument("pool name is missing")
        check_name(name, "the name of a pool")
        if not is_valid_pool_name(name):
            raise InvalidArgument(
                f"pool name {quoted(name)} not valid", hint="use a letter, followed by letters, digits and hyphens"
            )
        if not provider_type:
            raise InvalidArgument("provider type is missing")
        config = Config(name, provider_type, attrs)
        provider = self._registry.storage_provider(provider_type)
        try:
            provider.validate_config(config)
        except InvalidArgument as error:
            error.args = (f"validating storage provider config: {error}",)
            raise
        return config

    async def _ask(self, config: Config) -> None:
        """Raise what keeps volumes from being made there."""
        place = _pool_of(config).directory
        for pool in self._home.config.pools.values():
            if place and pool.name != config.name and pool.directory and _same(place, pool.directory):
                raise InvalidArgument(f'"{place}" is the directory of pool {quoted(pool.name)} already')
        backend = open_backend(config.provider, **_pool_of(config).attributes)
        try:
            with trio.fail_after(_PATIENCE):
                await backend.list()
        except FusevolError as error:
            error.args = (f"pool {quoted(config.name)}: {error}",)
            raise
        except trio.TooSlowError:
            raise BackendError(f"pool {quoted(config.name)} has not answered for {_PATIENCE:g} seconds") from None
        finally:
            with trio.CancelScope(shield=True):
                await backend.aclose()

    async def _refuse_if_used(self, name: str, what: str) -> None:
        volumes = [volume for volume, _ in await self._driver.store.volumes() if pool_of(volume) == name]
        if volumes:
            raise VolumeBusy(
                f"pool {quoted(name)} has {len(volumes)} volumes, and cannot be {what}",
                hint="to move one: fusevol copy, in docs/operating.md",
            )

    async def _change(self, edit: Callable[[_Tables], None]) -> None:
        """Change the tables of the configuration, and nothing else of it."""
        import tomlkit

        def change(text: str) -> str:
            document, wanted = tomlkit.parse(text), tomllib.loads(text)
            edit(document)
            edit(wanted)
            changed = tomlkit.dumps(document)
            # There are ways to write tables which tomlkit reads, and cannot add to.
            if _tables(changed) != _without_none(wanted):
                raise NotSupported(
                    f"{self._home.config_path} is written in a way that it cannot be changed by a program",
                    hint="change it with an editor",
                )
            return changed

        await trio.to_thread.run_sync(self._home.change_config, change)


def _tables(text: str) -> _Tables | None:
    try:
        return _without_none(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return None


def _without_none(tables: _Tables) -> _Tables:
    """A table of no pools at all is as good as none."""
    return {key: value for key, value in tables.items() if key != "pools" or value}


def _put(tables: _Tables, config: Config) -> None:
    if "pools" not in tables:
        tables["pools"] = {}
    tables["pools"][config.name] = {"backend": config.provider, **config.attrs}


def _pool_of(config: Config) -> Pool:
    attributes = {key: value for key, value in config.attrs.items() if key != "cache_size"}
    return Pool(config.name, config.provider, attributes)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"pool {quoted(name)} already exists")


def _not_found(name: str) -> InvalidArgument:
    return InvalidArgument(f"pool {quoted(name)} not found", hint="to see those there are: fusevol pool ls")
