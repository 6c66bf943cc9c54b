"""Options of `docker volume create -o`: those of `fusevol create --opt`, and what they mean for the driver."""

from collections.abc import Mapping

from fusevol.api import Source, VolumeLocator, VolumeSpec
from fusevol.cli.create_options import parse_create_options
from fusevol.driver import LocalDriver
from fusevol.driver.context import POOL_LABEL

__all__ = ["wanted"]


async def wanted(
    driver: LocalDriver, name: str, options: Mapping[str, str]
) -> tuple[VolumeLocator, Source | None, VolumeSpec]:
    """What `VolumeDriver.create` is to be given. Raises InvalidArgument for an option, VolumeNotFound for `from`."""
    found = parse_create_options([f"{key}={value}" for key, value in options.items()])
    labels = found.labels | ({} if found.pool is None else {POOL_LABEL: found.pool})
    source = None if found.source is None else Source(parent=(await driver.resolve(found.source)).id)
    return VolumeLocator(name=name, volume_labels=labels), source, found.applied_to(VolumeSpec())
