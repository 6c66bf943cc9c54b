"""A scrub of maps that hold less than they could."""

from __future__ import annotations

from fusevol.backends.memory import MemoryBackend
from fusevol.log import create_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.volumes import QUIET


async def test_a_volume_whose_data_was_all_discarded_is_scrubbed_as_empty() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET) as volume:
        await volume.write(b"x" * BLOCK * 3, 0)
        await volume.checkpoint()
        await volume.discard(BLOCK * 3, 0)
        await volume.flush()
        report = await volume.scrub()
    assert (report.blocks, report.damage) == (0, [])
