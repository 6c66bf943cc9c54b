"""Making and removing the pools of a state directory, which are in its config.toml."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from fusevol.api import check_name
from fusevol.driver import LocalDriver
from fusevol.driver.labels import pool_of
from fusevol.driver.pools import check_key, open_pool
from fusevol.errors import AlreadyExists, BackendError, FusevolError, InvalidArgument, VolumeBusy
from fusevol.home import DEFAULT_POOL, POOL_KEYS, Pool
from fusevol.storage.config import Attrs, Config
from fusevol.storage.names import ProviderType, is_valid_pool_name, quoted
from fusevol.storage.pooltext import with_other_pool, with_pool, without_pool
from fusevol.storage.provider import ProviderRegistry

__all__ = ["PoolManager"]

#: Seconds that whoever keeps a new pool's data has to answer.
_PATIENCE: Final = 60.0


class PoolManager:
    """Pools by name, as Juju's pool manager has them."""

    def __init__(self, driver: LocalDriver, registry: ProviderRegistry) -> None:
        self._driver = driver
        self._home = driver.context.home
        self._registry = registry

    def list(self) -> "list[Config]":
        """All pools, those included that there are without being made. Raises InvalidArgument, BackendError."""
        providers = map(self._registry.storage_provider, self._registry.storage_provider_types())
        return [config for provider in providers for config in provider.default_pools()]

    def get(self, name: str) -> Config:
        """The pool of that name. Raises InvalidArgument where there is none, DriverNotFound for its provider."""
        if pool := self._home.config.pools.get(name):
            for config in self._registry.storage_provider(pool.backend).default_pools():
                if config.name == name:
                    return config
        raise InvalidArgument(f"pool {quoted(name)} not found", hint="to see those there are: fusevol pool ls")

    async def create(self, name: str, provider_type: ProviderType, attrs: Attrs) -> Config:
        """Make a pool. Whoever is to keep its data is asked for what is there.

        Raises InvalidArgument for a name, provider or attribute that will not do, AlreadyExists for the name,
        DriverNotFound for the provider, BackendError where nobody answers.
        """
        config = self._checked(name, provider_type, attrs)
        if name in self._home.config.pools:
            raise AlreadyExists(f"pool {quoted(name)} already exists")
        await self._ask(config)
        await self._change(config, with_pool)
        return config

    async def replace(self, name: str, provider_type: ProviderType, attrs: Attrs) -> Config:
        """Give a pool that has no volumes other attributes, and where one is said, another provider.

        Raises VolumeBusy where it has some, which would not be found any more, and as `create` does.
        """
        before = self.get(name)
        config = self._checked(name, provider_type or before.provider, attrs)
        await self._refuse_if_used(name, "changed")
        await self._ask(config)
        await self._change(config, with_other_pool)
        await self._driver.context.drop_pool(name)
        return config

    async def delete(self, name: str) -> None:
        """Forget a pool; what may still be there stays. Raises VolumeBusy where it has volumes, InvalidArgument."""
        self.get(name)
        if name == DEFAULT_POOL:
            raise InvalidArgument(f"pool {quoted(name)} is always there")
        await self._refuse_if_used(name, "removed")
        await trio.to_thread.run_sync(self._home.change_config, lambda text: without_pool(text, name))
        await self._driver.context.drop_pool(name)

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
        pool = _pool_of(config)
        self._refuse_place(pool)
        try:
            backend = open_pool(pool, None)
            try:
                with trio.fail_after(_PATIENCE):
                    await check_key(backend, await backend.list())
            finally:
                with trio.CancelScope(shield=True):
                    await backend.aclose()
        except trio.TooSlowError:
            raise BackendError(f"pool {quoted(pool.name)} has not answered for {_PATIENCE:g} seconds") from None
        except FusevolError as error:
            error.args = (f"pool {quoted(pool.name)}: {error}",)
            raise

    async def _change(self, config: Config, change: Callable[[str, Config], str]) -> None:
        """Have a pool in the configuration, unless somebody else had another one there in the meantime."""

        def checked(text: str) -> str:
            self._refuse_place(_pool_of(config))
            return change(text, config)

        await trio.to_thread.run_sync(self._home.change_config, checked)

    def _refuse_place(self, pool: Pool) -> None:
        """Raise InvalidArgument for a place that somebody else has for something."""
        home, directory = self._home, pool.directory
        if (
            directory
            and pool.key_file
            and Path(os.path.realpath(pool.key_file)).is_relative_to(os.path.realpath(directory))
        ):
            raise InvalidArgument(f'the key "{pool.key_file}" is in the pool that it is the key to')
        others = [other for other in home.config.pools.values() if other.name != pool.name]
        for other in others:
            if "url" in pool.attributes and _store_of(pool) == _store_of(other):
                raise InvalidArgument(f"{pool.attributes['url']} is that of pool {quoted(other.name)}")
        if directory is None:
            return
        theirs = {home.path / "log": "that of logs", home.cache: "that of caches"}
        theirs |= {other.directory: f"that of pool {quoted(other.name)}" for other in others if other.directory}
        place = os.path.realpath(directory)
        for their, what in theirs.items():
            own = os.path.realpath(their)
            if os.path.commonpath([own, place]) in (own, place):
                where = "is" if own == place else "is in" if place.startswith(own) else "contains"
                raise InvalidArgument(f'"{directory}" {where} {what}, "{their}"')
        if os.path.commonpath([os.path.realpath(home.path), place]) == place:
            raise InvalidArgument(f'"{directory}" is, or contains, the state directory')

    async def _refuse_if_used(self, name: str, what: str) -> None:
        volumes = [volume for volume, _ in await self._driver.store.volumes() if pool_of(volume) == name]
        if volumes:
            raise VolumeBusy(
                f"pool {quoted(name)} has {len(volumes)} volumes, and cannot be {what}",
                hint="to move one: fusevol copy, in docs/operating.md",
            )


def _store_of(pool: Pool) -> tuple[str, object]:
    """The place in an object store, and the server."""
    config = pool.attributes.get("config")
    endpoint = config.get("endpoint") if isinstance(config, Mapping) else None
    return str(pool.attributes.get("url", "")).rstrip("/"), endpoint


def _pool_of(config: Config) -> Pool:
    attributes = {key: value for key, value in config.attrs.items() if key not in POOL_KEYS}
    return Pool(config.name, config.provider, attributes, key_file=str(config.attrs.get("key_file", "")))
