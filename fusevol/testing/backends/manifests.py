# ruff: noqa: D102 - the names of the tests are the sentences
"""Manifests: replaced by one at a time."""

import contextlib

import pytest
import trio

from fusevol.backends.base import NO_VERSION, Backend, Manifest
from fusevol.errors import ManifestConflict
from fusevol.testing.backends.base import BLOCK, MIB, Reopen, Rules, get, noise

__all__ = ["ManifestRules"]


class ManifestRules(Rules):
    """Of manifests."""

    async def test_a_manifest_is_put_only_over_the_version_that_was_read(self, volume: Backend) -> None:
        one = await volume.put_manifest("v", b"one", NO_VERSION)
        assert await volume.get_manifest("v") == Manifest(b"one", one)
        for stale in (NO_VERSION, "no-such-version", one + "0"):
            with pytest.raises(ManifestConflict):
                await volume.put_manifest("v", b"stale", stale)
        two = await volume.put_manifest("v", b"two", one)
        assert two not in (one, NO_VERSION)
        with pytest.raises(ManifestConflict):
            await volume.put_manifest("v", b"stale", one)
        assert await volume.get_manifest("v") == Manifest(b"two", two)

    async def test_a_version_does_not_come_back_with_the_same_bytes(self, volume: Backend) -> None:
        first = await volume.put_manifest("v", b"A", NO_VERSION)
        second = await volume.put_manifest("v", b"B", first)
        third = await volume.put_manifest("v", b"A", second)
        assert len({first, second, third}) == 3
        with pytest.raises(ManifestConflict):
            await volume.put_manifest("v", b"C", first)
        fourth = await volume.put_manifest("v", b"A", third)  # the same bytes over themselves
        assert fourth not in (first, second, third)

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, MIB])
    async def test_manifests_of_any_size_come_back(self, volume: Backend, size: int) -> None:
        data = noise(size)
        version = await volume.put_manifest("v", data, NO_VERSION)
        assert version != NO_VERSION
        assert await volume.get_manifest("v") == Manifest(data, version)
        last = await volume.put_manifest("v", b"", version)
        assert await volume.get_manifest("v") == Manifest(b"", last)

    async def test_a_manifest_takes_nothing_of_the_space(self, volume: Backend) -> None:
        await volume.put_manifest("v", noise(100_000), NO_VERSION)
        assert await volume.used_size("v") == 0
        assert await get(volume, BLOCK, 0) == b""

    async def test_of_many_puts_over_one_version_one_wins(self, volume: Backend, reopen: Reopen | None) -> None:
        others = [reopen(), reopen()] if reopen else []
        contenders = [volume, *others]
        version = NO_VERSION
        for turn in range(5):
            won: list[Manifest] = []

            async def contend(backend: Backend, data: bytes, version: str = version, won: list[Manifest] = won) -> None:
                with contextlib.suppress(ManifestConflict):
                    won.append(Manifest(data, await backend.put_manifest("v", data, version)))

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    backend = contenders[number % len(contenders)]
                    nursery.start_soon(contend, backend, b"%d.%d" % (turn, number))
            assert len(won) == 1
            for backend in contenders:
                assert await backend.get_manifest("v") == won[0]
            version = won[0].version
        for backend in others:
            await backend.aclose()
