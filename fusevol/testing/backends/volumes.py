# ruff: noqa: D102 - the names of the tests are the sentences
"""Volumes: made, listed, deleted."""

import contextlib

import pytest

from fusevol.backends.base import NO_VERSION, Backend, Manifest
from fusevol.errors import AlreadyExists, InvalidArgument, ManifestConflict, VolumeNotFound
from fusevol.testing.backends.base import BLOCK, CALLS, Rules, get, noise, put

__all__ = ["VolumeRules"]


class VolumeRules(Rules):
    """Of volumes."""

    async def test_sweeping_takes_nothing_from_volumes(self, backend: Backend) -> None:
        for volume_id in ("gone", "v"):
            await backend.create(volume_id)
        await backend.delete("gone")
        version = await backend.put_manifest("v", b"manifest", NO_VERSION)
        await backend.write("v", b"x" * 4096, 0)
        await backend.sweep()
        assert await backend.list() == ["v"]
        assert await backend.get_manifest("v") == (b"manifest", version)
        assert bytes(await backend.read("v", 4096, 0)) == b"x" * 4096

    async def test_created_volumes_are_listed_sorted_and_deleted_ones_are_not(self, backend: Backend) -> None:
        assert await backend.list() == []
        for name in ("v2", "v10", "a.b-c_D", "x" * 128):
            await backend.create(name)
        assert await backend.list() == ["a.b-c_D", "v10", "v2", "x" * 128]
        await backend.delete("v10")
        assert await backend.list() == ["a.b-c_D", "v2", "x" * 128]

    async def test_a_new_volume_is_empty(self, volume: Backend) -> None:
        assert await get(volume, BLOCK, 0) == b""
        assert await volume.used_size("v") == 0
        assert await volume.get_manifest("v") == Manifest(b"", NO_VERSION)
        await volume.flush("v")

    async def test_create_of_an_existing_volume_is_refused_and_changes_nothing(self, volume: Backend) -> None:
        await put(volume, noise(BLOCK), 0)
        version = await volume.put_manifest("v", b"m", NO_VERSION)
        with pytest.raises(AlreadyExists):
            await volume.create("v")
        assert await get(volume, BLOCK, 0) == noise(BLOCK)
        assert await volume.get_manifest("v") == Manifest(b"m", version)

    @pytest.mark.parametrize("call", CALLS)
    async def test_calls_on_a_missing_volume_raise_volume_not_found(self, backend: Backend, call: str) -> None:
        with pytest.raises(VolumeNotFound):
            await CALLS[call](backend, "v")
        assert await backend.list() == []

    async def test_read_nowait_of_a_missing_volume_answers_nothing(self, backend: Backend) -> None:
        with contextlib.suppress(VolumeNotFound):
            assert backend.read_nowait("v", BLOCK, 0) is None

    @pytest.mark.parametrize("call", ["create", *CALLS])
    async def test_a_bad_volume_id_is_an_invalid_argument(self, backend: Backend, call: str) -> None:
        for name in ("", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "a b", "ä", "a\n", "x" * 129, "x" * 200):
            with pytest.raises(InvalidArgument):
                await (backend.create(name) if call == "create" else CALLS[call](backend, name))
        assert await backend.list() == []

    @pytest.mark.parametrize("call", CALLS)
    async def test_a_deleted_volume_is_gone_for_every_call(self, volume: Backend, call: str) -> None:
        await put(volume, noise(8192), 0)
        await volume.put_manifest("v", b"m", NO_VERSION)
        await volume.delete("v")
        with pytest.raises(VolumeNotFound):
            await CALLS[call](volume, "v")

    async def test_a_volume_made_again_has_nothing_of_the_old_one(self, volume: Backend) -> None:
        await put(volume, noise(8192), 0)
        old = await volume.put_manifest("v", b"m", NO_VERSION)
        await volume.delete("v")
        await volume.create("v")
        assert await get(volume, 8192, 0) == b""
        assert await volume.used_size("v") == 0
        assert await volume.get_manifest("v") == Manifest(b"", NO_VERSION)
        with pytest.raises(ManifestConflict):
            await volume.put_manifest("v", b"m", old)
        assert await volume.put_manifest("v", b"m", NO_VERSION) != old

    async def test_volumes_know_nothing_of_each_other(self, volume: Backend) -> None:
        for name in ("w", "v.", "vv", "V"):
            await volume.create(name)
        await put(volume, noise(BLOCK), 0)
        await volume.put_manifest("v", b"m", NO_VERSION)
        for name in ("w", "v.", "vv", "V"):
            assert bytes(await volume.read(name, BLOCK, 0)) == b""
            assert (await volume.get_manifest(name)).data == b""
            await volume.delete(name)
        assert await get(volume, BLOCK, 0) == noise(BLOCK)
