"""Having the filesystems that directives ask for: storage instances `data/0`, `data/1`, ... of a name and a count.

Storage instance `data/1` is the volume `data-1`, mounted on a directory of that name where there is one to mount in.
What is there already stays, and grows if it has to, so the same may be asked for at every start of a machine.
"""

import os
from collections.abc import Mapping

import msgspec

from fusevol.api import Record
from fusevol.errors import FusevolError, InvalidArgument
from fusevol.home import DEFAULT_POOL
from fusevol.storage.directive import Directive
from fusevol.storage.filesystems import Filesystem, FilesystemAttachmentParams, FilesystemParams
from fusevol.storage.names import ProviderType, quoted
from fusevol.storage.pools import PoolManager
from fusevol.storage.provider import ProviderRegistry
from fusevol.storage.tags import FilesystemTag, MachineTag, StorageTag

__all__ = ["Provisioned", "provision"]

#: This host: the only one that anything here can be attached to.
_MACHINE = MachineTag("0")
#: A count of more than that is a slip of the keyboard.
_MOST = 1000


class Provisioned(Record, frozen=True, kw_only=True):
    """A storage instance, and what became of it.

    name: of its volume. filesystem: None where there is an error. path: where it is mounted, "" for nowhere.
    """

    tag: StorageTag
    name: str
    pool: str
    filesystem: Filesystem | None = None
    path: str = ""
    error: FusevolError | None = None


async def provision(
    registry: ProviderRegistry,
    pools: PoolManager,
    directives: Mapping[str, Directive],
    *,
    directory: str = "",
    read_only: bool = False,
) -> list[Provisioned]:
    """Make what directives ask for, by the names of storage, and mount it below `directory`, if one is said.

    Each has its own error. Raises InvalidArgument, before anything is made, for a name that storage cannot have, for a
    pool that there is not, and for a size or count that cannot be.
    """
    wanted = []
    for storage, directive in directives.items():
        config = pools.get(directive.pool or DEFAULT_POOL)
        source = registry.storage_provider(config.provider).filesystem_source(config)
        if directive.count > _MOST:
            raise InvalidArgument(f"storage {quoted(storage)}: {directive.count} are more than {_MOST} at once")
        for number in range(directive.count):
            tag = StorageTag(f"{storage}/{number}")
            item = Provisioned(tag=tag, name=tag.id.replace("/", "-"), pool=config.name)
            params = _params(item, directive.size, config.provider, directory, read_only)
            source.validate_filesystem_params(params)
            wanted.append((source, item, params))
    done = []
    for source, item, params in wanted:
        result = (await source.create_filesystems([params]))[0]
        path = params.attachment.path if params.attachment and not result.error else ""
        done.append(msgspec.structs.replace(item, filesystem=result.filesystem, error=result.error, path=path))
    return done


def _params(item: Provisioned, size: int, provider: ProviderType, directory: str, read_only: bool) -> FilesystemParams:
    tag = FilesystemTag(f"{item.tag.id}/0")
    attachment = FilesystemAttachmentParams(
        provider=provider,
        machine=_MACHINE,
        read_only=read_only,
        filesystem=tag,
        path=os.path.abspath(os.path.join(directory, item.name)),
    )
    return FilesystemParams(
        tag=tag,
        size=size,
        provider=provider,
        attributes={"name": item.name},
        attachment=attachment if directory else None,
    )
