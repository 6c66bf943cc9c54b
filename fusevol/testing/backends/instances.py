# ruff: noqa: D102 - the names of the tests are the sentences
"""Several instances, cancelled calls, and the end."""

import contextlib

import pytest
import trio

from fusevol.backends.base import NO_VERSION, Backend, Manifest
from fusevol.errors import AlreadyExists, InvalidArgument, ManifestConflict, VolumeNotFound
from fusevol.testing.backends.base import ALIGN, BLOCK, CALLS, Reopen, Rules, get, noise, put

__all__ = ["InstanceRules"]


class InstanceRules(Rules):
    """Of what becomes of instances."""

    async def test_another_instance_finds_what_was_flushed(self, volume: Backend, reopen: Reopen | None) -> None:
        if reopen is None:
            pytest.skip("no second instance")
        data = noise(25 * BLOCK)
        await put(volume, data, 4096)
        await put(volume, b"gone" * ALIGN, ALIGN * 8)
        await volume.discard("v", 4 * ALIGN, ALIGN * 8)
        await volume.flush("v")
        version = await volume.put_manifest("v", b"m", NO_VERSION)
        used = await volume.used_size("v")
        await volume.aclose()
        other = reopen()
        assert await other.list() == ["v"]
        assert await get(other, len(data), 4096) == data
        assert await other.get_manifest("v") == Manifest(b"m", version)
        assert await other.used_size("v") == used
        with pytest.raises(AlreadyExists):
            await other.create("v")
        await other.delete("v")
        assert await other.list() == []
        await other.aclose()

    async def test_an_instance_sees_what_another_writes_later(self, volume: Backend, reopen: Reopen | None) -> None:
        if reopen is None:
            pytest.skip("no second instance")
        other = reopen()
        a, b, c, d = (noise(2 * BLOCK, number) for number in range(4))
        await put(volume, a, 0)
        assert await get(other, 2 * BLOCK, 0) == a
        assert await get(other, BLOCK, 2 * BLOCK) == b""
        await put(volume, b, 2 * BLOCK)
        assert await get(other, 9 * BLOCK, BLOCK) == a[BLOCK:] + b
        await put(volume, d, 12 * BLOCK)
        await put(volume, c, 8 * BLOCK)
        assert await get(other, 2 * BLOCK, 8 * BLOCK) == c
        await volume.create("w")
        assert await other.list() == ["v", "w"]
        await other.delete("w")
        assert await volume.list() == ["v"]
        await other.aclose()

    async def test_what_is_known_of_the_store_is_no_less_than_nothing(self, volume: Backend) -> None:
        capacity = volume.capacity("v")
        assert capacity is None or 0 <= capacity.free <= capacity.total

    async def test_closing_twice_is_harmless(self, volume: Backend) -> None:
        await put(volume, noise(BLOCK), 0)
        await volume.aclose()
        await volume.aclose()

    @pytest.mark.parametrize("call", ["create", "list", *CALLS])
    @pytest.mark.parametrize("when", ["before", "during"])
    async def test_a_cancelled_call_leaves_the_backend_usable(self, backend: Backend, call: str, when: str) -> None:
        await backend.create("v")
        await put(backend, b"a" * 4096, 0)
        await backend.flush("v")
        calls = CALLS | {"create": lambda b, _: b.create("w"), "list": lambda b, _: b.list()}
        with trio.CancelScope() as scope:
            if when == "before":
                scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls[call], backend, "v")
                if when == "during":
                    await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            # It may have had its effect or not; a repetition makes it certain that it had.
            with contextlib.suppress(VolumeNotFound, AlreadyExists, InvalidArgument, ManifestConflict):
                await calls[call](backend, "v")
            if "v" not in await backend.list():
                await backend.create("v")
            await put(backend, b"b" * 4096, ALIGN)
            await backend.flush("v")
            assert await get(backend, 4096, ALIGN) == b"b" * 4096
            manifest = await backend.get_manifest("v")
            await backend.put_manifest("v", b"n", manifest.version)
            assert (await backend.get_manifest("v")).data == b"n"
            await backend.delete("v")
