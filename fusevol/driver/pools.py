"""The pools of a state directory: opening their backends, with what is put before these, and what is in them."""

import uuid
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fusevol.errors import BackendError, CorruptData, NotSupported, VolumeNotFound
from fusevol.home import POOL_KEYS, Pool

if TYPE_CHECKING:
    from fusevol.backends.base import Backend

__all__ = ["check_key", "is_uuid", "open_pool"]

#: Volumes that are asked for what they are encrypted with, one after the other until one can tell.
_ASKED = 8


def is_uuid(text: str) -> bool:
    """Whether the driver can have made a volume of that id: those of its snapshots come from it."""
    with suppress(ValueError):
        return str(uuid.UUID(text)) == text
    return False


async def check_key(backend: "Backend", volume_ids: Iterable[str]) -> bool:
    """Raise WrongKey where the volumes of a pool are encrypted otherwise than its description says.

    Returns whether there was one that could tell.

    BackendError where the pool is on other machines, which do not answer.
    """
    from fusevol.log import read_manifest

    # What is wrong with one of them alone is nothing to this. Of those who do not answer, nobody asks eight times.
    passing = CorruptData if backend.traits.remote else BackendError
    for volume_id in islice(filter(is_uuid, volume_ids), _ASKED):
        with suppress(VolumeNotFound, NotSupported, passing):
            await read_manifest(backend, volume_id)
            return True
    return False


def open_pool(pool: Pool, cache_directory: Path | None) -> "Backend":
    """The backend of a pool, cached where its reads wait for other machines, encrypted where it has a key.

    What is cached is encrypted, too. cache_directory: None begins with nothing cached and leaves nothing.

    Raises DriverNotFound, InvalidArgument for what describes the pool, BackendError.
    """
    from fusevol.backends import check_parameters, open_backend

    check_parameters(pool.backend, pool.attributes, besides=POOL_KEYS)
    key = None
    if pool.key_file:
        from fusevol.backends.encryption import EncryptedBackend, read_key_file

        key = read_key_file(pool.key_file)
    backend = open_backend(pool.backend, **pool.attributes)
    if backend.traits.remote:
        from fusevol.backends.cache import LocalCache

        backend = LocalCache(lambda: open_backend(pool.backend, **pool.attributes), cache_directory, pool.cache_size)
    return EncryptedBackend(backend, key) if key else backend
