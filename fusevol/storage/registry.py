"""Registries of storage providers."""

from collections.abc import Mapping, Sequence

from fusevol.errors import DriverNotFound, FusevolError, NotSupported
from fusevol.storage.names import ProviderType, quoted
from fusevol.storage.provider import Provider, ProviderRegistry

__all__ = ["ChainedProviderRegistry", "NotImplementedProviderRegistry", "StaticProviderRegistry"]


class StaticProviderRegistry(ProviderRegistry):
    """One that is made with all its providers (StaticProviderRegistry of the seed)."""

    def __init__(self, providers: Mapping[ProviderType, Provider]) -> None:
        self.providers = dict(providers)

    def storage_provider_types(self) -> list[ProviderType]:
        """The types of all providers, sorted."""
        return sorted(self.providers)

    def storage_provider(self, provider_type: ProviderType) -> Provider:
        """The provider of a type. Raises DriverNotFound."""
        if provider_type not in self.providers:
            raise _not_found(provider_type)
        return self.providers[provider_type]


class ChainedProviderRegistry(ProviderRegistry):
    """Several, of which the first that knows a type has it (ChainedProviderRegistry of the seed)."""

    def __init__(self, registries: Sequence[ProviderRegistry]) -> None:
        self.registries = tuple(registries)

    def storage_provider_types(self) -> list[ProviderType]:
        """The types of one after the other."""
        return [name for registry in self.registries for name in registry.storage_provider_types()]

    def storage_provider(self, provider_type: ProviderType) -> Provider:
        """The provider of a type. Raises DriverNotFound, and whatever one of them does besides that."""
        for registry in self.registries:
            try:
                return registry.storage_provider(provider_type)
            except DriverNotFound:
                continue
            except FusevolError as error:
                error.args = (f"getting storage provider {quoted(provider_type)}: {error}",)
                raise
        raise _not_found(provider_type)


class NotImplementedProviderRegistry(ProviderRegistry):
    """One that has nothing (NotImplementedProviderRegistry of the seed)."""

    def storage_provider_types(self) -> list[ProviderType]:
        """Raises NotSupported."""
        raise NotSupported('"StorageProviderTypes" not implemented')

    def storage_provider(self, provider_type: ProviderType) -> Provider:
        """Raises NotSupported."""
        raise NotSupported('"StorageProvider" not implemented')


def _not_found(provider_type: ProviderType) -> DriverNotFound:
    return DriverNotFound(f"storage provider {quoted(provider_type)} not found")
