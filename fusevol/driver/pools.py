"""Opening the pools of a state directory: their backends, and what is put before these."""

from pathlib import Path
from typing import TYPE_CHECKING

from fusevol.home import Pool

if TYPE_CHECKING:
    from fusevol.backends.base import Backend

__all__ = ["open_pool"]


def open_pool(pool: Pool, cache_directory: Path | None) -> "Backend":
    """The backend of a pool, cached where its reads wait for other machines, encrypted where it has a key.

    What is cached is encrypted, too. cache_directory: None begins with nothing cached and leaves nothing.

    Raises DriverNotFound, InvalidArgument for what describes the pool, BackendError.
    """
    from fusevol.backends import open_backend

    key = None
    if pool.key_file:
        from fusevol.backends.encryption import EncryptedBackend, read_key_file

        key = read_key_file(pool.key_file)
    backend = open_backend(pool.backend, **pool.attributes)
    if backend.traits.remote:
        from fusevol.backends.cache import LocalCache

        backend = LocalCache(lambda: open_backend(pool.backend, **pool.attributes), cache_directory, pool.cache_size)
    return EncryptedBackend(backend, key) if key else backend
