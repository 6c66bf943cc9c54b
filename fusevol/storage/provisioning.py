"""Having the filesystems that directives ask for: storage instances `data/0`, `data/1`, ... of a name and a count.

Storage instance `data/1` is the volume `data-1`, mounted on a directory of that name where there is one to mount in.
What is there already stays, and grows if it has to, so the same may be asked for at every start of a machine.
"""

import os
from collections.abc import Mapping

import msgspec

from fusevol.api import Record
from fusevol.driver import LocalDriver
from fusevol.errors import FusevolError, InvalidArgument
from fusevol.home import DEFAULT_POOL
from fusevol.storage.directive import Directive
from fusevol.storage.filesystems import Filesystem, FilesystemAttachmentParams, FilesystemParams
from fusevol.storage.local import local_provider_registry
from fusevol.storage.names import quoted
from fusevol.storage.pools import PoolManager
from fusevol.storage.provider import FilesystemSource
from fusevol.storage.tags import FilesystemTag, MachineTag, StorageTag

__all__ = ["Provisioned", "provision"]

#: This host: the only one that anything here can be attached to.
_MACHINE = MachineTag("0")
#: A count of more than that is a slip of the keyboard.
_MOST = 1000


class Provisioned(Record, frozen=True, kw_only=True):
    """A storage instance, and what became of it.

    name: of its volume. filesystem: None where there is none. path: where it is mounted, "" for nowhere. error: why it
    is not there, or not mounted.
    """

    tag: StorageTag
    name: str
    pool: str
    filesystem: Filesystem | None = None
    path: str = ""
    error: FusevolError | None = None


async def provision(
    driver: LocalDriver,
    directives: Mapping[str, Directive],
    *,
    directory: str = "",
    read_only: bool = False,
    adopt: bool = False,
) -> list[Provisioned]:
    """Make what directives ask for, by the names of storage, and mount it below `directory`, if one is said.

    adopt: volumes of these names that are nobody's are taken for it. Each has its own error. Raises InvalidArgument,
    before anything is made, for a name that storage cannot have, for a pool that there is not, and for a size or count
    that cannot be.
    """
    if not directory.isprintable():
        raise InvalidArgument(f"directory {quoted(directory)}: it must be a printable text")
    registry = local_provider_registry(driver)
    pools = PoolManager(driver, registry)
    wanted = []
    for storage, directive in directives.items():
        if not StorageTag.is_valid(f"{storage}/0"):
            raise InvalidArgument(
                f"storage cannot be called {quoted(storage)}",
                hint="use small letters, digits and hyphens; a letter comes first, and one behind each hyphen",
            )
        if directive.count > _MOST:
            raise InvalidArgument(f"storage {quoted(storage)}: {directive.count} are more than {_MOST} at once")
        config = pools.get(directive.pool or DEFAULT_POOL)
        source = registry.storage_provider(config.provider).filesystem_source(config)
        for number in range(directive.count):
            tag = StorageTag(f"{storage}/{number}")
            item = Provisioned(tag=tag, name=tag.id.replace("/", "-"), pool=config.name)
            params = FilesystemParams(
                tag=FilesystemTag(f"{tag.id}/0"),
                size=directive.size,
                provider=config.provider,
                attributes={"name": item.name, "adopt": adopt},
            )
            source.validate_filesystem_params(params)
            wanted.append((source, item, params))
    return [await _provision(driver, source, item, params, directory, read_only) for source, item, params in wanted]


async def _provision(
    driver: LocalDriver,
    source: FilesystemSource,
    item: Provisioned,
    params: FilesystemParams,
    directory: str,
    read_only: bool,
) -> Provisioned:
    (created,) = await source.create_filesystems([params])
    if created.filesystem is None:
        return msgspec.structs.replace(item, error=created.error)
    # It may have been renamed since it was made.
    volume = await driver.resolve(created.filesystem.filesystem_id)
    made = msgspec.structs.replace(item, name=volume.locator.name, filesystem=created.filesystem)
    if not directory:
        return made
    attachment = FilesystemAttachmentParams(
        provider=params.provider,
        machine=_MACHINE,
        read_only=read_only,
        filesystem=params.tag,
        filesystem_id=created.filesystem.filesystem_id,
        path=os.path.join(directory, item.name),
    )
    (attached,) = await source.attach_filesystems([attachment])
    if attached.filesystem_attachment is None:
        return msgspec.structs.replace(made, error=attached.error)
    return msgspec.structs.replace(made, path=attached.filesystem_attachment.path)
