"""A volume that is emptied is as new, wherever that was interrupted, and earlier writers are fenced."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fusevol.backends.base import Backend
from fusevol.backends.file import FileBackend
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, Rule, fail
from fusevol.errors import BackendError, Fenced, VolumeHasSnapshots
from fusevol.log import clone_volume, create_volume, empty_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.volumes import QUIET, block_bytes


@pytest.fixture(params=["memory", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return MemoryBackend() if request.param == "memory" else FileBackend(tmp_path)


async def filled(backend: Backend) -> None:
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=QUIET) as volume:
        await volume.write(block_bytes("old") * 100, 0)
        await volume.snapshot("s")
        await volume.write(block_bytes("older"), 0)


async def is_new(backend: Backend) -> bool:
    async with open_volume(backend, "v", options=QUIET) as volume:
        if volume.snapshots() or any(await volume.read(100 * BLOCK, 0)) or (await volume.usage()).data:
            return False
        await volume.write(block_bytes("new"), BLOCK)
        await volume.flush()
    async with open_volume(backend, "v", read_only=True) as volume:
        return bytes(await volume.read(2 * BLOCK, 0)) == bytes(BLOCK) + block_bytes("new")


async def test_an_emptied_volume_is_as_new(backend: Backend) -> None:
    await filled(backend)
    await empty_volume(backend, "v")
    assert await backend.used_size("v") == 0
    assert await is_new(backend)
    await empty_volume(backend, "v")
    await empty_volume(backend, "v")
    assert await is_new(backend)


@pytest.mark.parametrize(
    "step",
    [fail("get_manifest"), fail("put_manifest", nth=1), fail("put_manifest", nth=2), fail("delete"), fail("create")],
    ids=["first", "marking", "last", "delete", "create"],
)
async def test_emptying_is_finished_by_doing_it_again_wherever_it_failed(backend: Backend, step: Rule) -> None:
    await filled(backend)
    with pytest.raises(BackendError):
        await empty_volume(FaultyBackend(backend, [replace(step)]), "v")
    await empty_volume(backend, "v")
    assert await is_new(backend)


async def test_who_had_it_attached_is_fenced_and_harms_nobody(backend: Backend) -> None:
    await filled(backend)
    with trio.fail_after(30), pytest.raises(Fenced):  # noqa: PT012 -- raised on leaving
        async with open_volume(backend, "v", options=QUIET) as before:
            await before.write(block_bytes("late"), 0)
            await empty_volume(backend, "v")
            async with open_volume(backend, "v", options=QUIET) as volume:
                await volume.write(block_bytes("mine"), 0)
                await volume.flush()
                with pytest.raises(Fenced):
                    await before.flush()
                assert bytes(await volume.read(BLOCK, 0)) == block_bytes("mine")
    async with open_volume(backend, "v", read_only=True) as volume:
        assert bytes(await volume.read(BLOCK, 0)) == block_bytes("mine")
        assert (await volume.scrub()).damage == []


async def test_a_volume_that_has_clones_is_not_emptied(backend: Backend) -> None:
    await filled(backend)
    await clone_volume(backend, "v", "s", "c")
    with pytest.raises(VolumeHasSnapshots):
        await empty_volume(backend, "v")
    async with open_volume(backend, "c", read_only=True) as clone:
        assert bytes(await clone.read(BLOCK, 0)) == block_bytes("old")
