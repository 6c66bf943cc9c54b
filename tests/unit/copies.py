"""What the tests of copies share: a second pool, copies in a word, and what a volume holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusevol.driver import LocalDriver
from fusevol.driver.copying import Copied
from fusevol.errors import BackendError, FusevolError
from fusevol.home import Home
from fusevol.log import LogVolume, copying
from tests.unit.driving import BLOCK, create, snapshot
from tests.unit.volumes import Content, block_bytes, content_of

__all__ = ["PLACES", "breaking", "contents", "copy", "home_with_far", "snapshots", "unfinished"]

#: Blocks of three leaves, one of them far away.
PLACES = [*range(12), *range(1020, 1032), *range(5_000_000, 5_000_006)]


def home_with_far(place: Path) -> Home:
    """A state directory with a second pool, "far"."""
    home = Home(place / "home")
    home.path.mkdir()
    home.config_path.write_text(f'lock_timeout = 0.2\n[pools.far]\nbackend = "file"\npath = "{place}/far"\n')
    return home


async def copy(driver: LocalDriver, source: str, name: str = "copy", *, only: bool = False) -> Copied:
    return await driver.copying.copy(await driver.resolve(source), name, pool="far", only=only)


async def snapshots(driver: LocalDriver, name: str) -> list[str]:
    return [found.locator.name for found in await driver.snapshots.of(await driver.resolve(name))]


async def contents(driver: LocalDriver, name: str) -> tuple[Content, dict[str, Content]]:
    """What the live tree of a volume holds, and each of its snapshots, in PLACES."""

    async def work(log: LogVolume) -> tuple[Content, dict[str, Content]]:
        held = {}
        for found in log.snapshots():
            async with log.view(found.name) as view:
                held[found.name] = await everywhere(view)
        return await everywhere(log), held

    return await driver.context.look(await driver.resolve(name), work)


async def everywhere(source: object) -> Content:
    found: Content = {}
    for first, end in ((0, 1040), (5_000_000, 5_000_010)):
        found |= await content_of(source, range(first, end))  # type: ignore[arg-type]
    return found


@contextmanager
def breaking(error: FusevolError, after: int = 20) -> Iterator[None]:
    """Have copies fail after so many leaves, at a barrier."""
    real, left = copying.Copier._copy, after

    async def copy_one(self: copying.Copier, leaf: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            await self._target.flush()
            raise error
        await real(self, leaf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying.Copier, "_copy", copy_one)
        yield


async def unfinished(driver: LocalDriver) -> str:
    """A copy, of a volume "web" of 40 leaves, of which the first snapshot is there, and half of the second."""
    web = await create(driver, "web")
    for round_ in ("first", "second"):
        async with driver.context.hold(web) as held, driver.context.writing(held) as log:
            for leaf in range(40):
                await log.write(block_bytes((round_, leaf)), leaf * 1024 * BLOCK)
        await snapshot(driver, web, round_)
    await copy(driver, "web@first")
    with breaking(BackendError("no line")), pytest.raises(BackendError, match="no line") as caught:
        await copy(driver, "web@second")
    assert "the same command goes on with it" in str(caught.value.hint)
    return web
