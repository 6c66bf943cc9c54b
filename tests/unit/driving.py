"""What tests do with a driver in a word: volumes and snapshots made, and bytes of volumes that are not mounted."""

from typing import Any

from fusevol.api import Source, Volume, VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver

__all__ = ["BLOCK", "create", "get", "names", "read", "snapshot", "write"]

BLOCK = 4096


async def create(driver: LocalDriver, name: str, parent: str = "", size: int = 0, **labels: str) -> str:
    source = Source(parent=parent) if parent else None
    return await driver.create(VolumeLocator(name=name, volume_labels=labels), source, VolumeSpec(size=size))


async def snapshot(driver: LocalDriver, volume_id: str, name: str, **labels: str) -> str:
    return await driver.snapshot(volume_id, readonly=True, locator=VolumeLocator(name=name, volume_labels=labels))


async def write(driver: LocalDriver, volume_id: str, text: bytes, block: int = 0) -> None:
    async with driver.context.hold(volume_id) as volume, driver.context.writing(volume) as log:
        await log.write(text.ljust(BLOCK, b"\0"), block * BLOCK)


async def read(driver: LocalDriver, volume_id: str, block: int = 0) -> bytes:
    async def work(log: Any) -> bytes:
        return bytes(await log.read(BLOCK, block * BLOCK)).rstrip(b"\0")

    return await driver.context.look(await get(driver, volume_id), work)


async def get(driver: LocalDriver, volume_id: str) -> Volume:
    [found] = await driver.inspect([volume_id])
    return found


async def names(driver: LocalDriver, **query: Any) -> list[str]:
    return [volume.locator.name for volume in await driver.enumerate(**query)]
