# ruff: noqa: D102 - the names of the tests are the sentences
"""FilesystemSourceContract: the tests that sources of filesystems must pass. Needs pytest and pytest-trio in trio mode.

    class TestShelf(FilesystemSourceContract):
        @pytest.fixture
        async def provider(self):
            yield ShelfProvider()
            await remove_everything()

        @pytest.fixture
        def config(self):
            return Config("shelf", "shelf", {})

A test makes filesystems with the tags `filesystem-0`, `filesystem-1` and so on, and leaves them, some of them mounted.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from fusevol.errors import FusevolError, InvalidArgument, NotSupported, VolumeAttached, VolumeNotFound
from fusevol.storage import (
    Config,
    Filesystem,
    FilesystemAttachment,
    FilesystemAttachmentParams,
    FilesystemParams,
    FilesystemSource,
    FilesystemTag,
    MachineTag,
    Provider,
    StorageKind,
    VolumeTag,
)

__all__ = ["FilesystemSourceContract", "attach", "attachment", "create", "is_mount", "raised", "wanted"]

MACHINE = MachineTag("0")
MISSING = "00000000-0000-4000-8000-000000000000"


def wanted(config: Config, number: int = 0, size: int = 64) -> FilesystemParams:
    """A filesystem of so many MiB."""
    return FilesystemParams(tag=FilesystemTag(str(number)), size=size, provider=config.provider)


def attachment(config: Config, filesystem: Filesystem, path: Path | str) -> FilesystemAttachmentParams:
    """A filesystem that is to be mounted for writing."""
    return FilesystemAttachmentParams(
        provider=config.provider,
        machine=MACHINE,
        filesystem=filesystem.tag,
        filesystem_id=filesystem.filesystem_id,
        path=os.fspath(path),
    )


async def create(source: FilesystemSource, params: FilesystemParams) -> Filesystem:
    """Make one that can be made."""
    (result,) = await source.create_filesystems([params])
    if result.error:
        raise result.error
    assert result.filesystem is not None
    return result.filesystem


async def attach(source: FilesystemSource, params: FilesystemAttachmentParams) -> FilesystemAttachment:
    """Mount one, or raise why it cannot be."""
    (result,) = await source.attach_filesystems([params])
    if result.error:
        raise result.error
    assert result.filesystem_attachment is not None
    return result.filesystem_attachment


def raised(results: Sequence[FusevolError | None]) -> FusevolError:
    """The error of a call for one."""
    (error,) = results
    assert error is not None
    return error


def is_mount(path: Path) -> bool:
    """Whether something is mounted there."""
    return os.path.ismount(path)


async def write(path: Path, data: bytes) -> None:
    """Write a file, away from the loop's thread."""
    await trio.to_thread.run_sync(path.write_bytes, data)


async def read(path: Path) -> bytes:
    """Read it again."""
    return await trio.to_thread.run_sync(path.read_bytes)


class FilesystemSourceContract:
    """The rules of Juju's FilesystemSource, and of its importer where the source is one."""

    @pytest.fixture
    def source(self, provider: Provider, config: Config) -> FilesystemSource:
        return provider.filesystem_source(config)

    async def test_a_provider_supports_what_it_has_sources_of(self, provider: Provider, config: Config) -> None:
        assert provider.supports(StorageKind.FILESYSTEM)
        assert not provider.supports(StorageKind.UNKNOWN)
        if provider.supports(StorageKind.BLOCK):
            provider.volume_source(config)
        else:
            with pytest.raises(NotSupported, match=r"^volumes not supported$"):
                provider.volume_source(config)

    async def test_a_filesystem_through_its_life(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        made = await create(source, wanted(config))
        assert made.tag == FilesystemTag("0")
        assert made.filesystem_id
        assert made.size >= 64
        path = tmp_path / "one" / "two"
        seen = await attach(source, attachment(config, made, path))
        assert seen == FilesystemAttachment(filesystem=made.tag, machine=MACHINE, path=str(path), read_only=False)
        await write(path / "file", b"kept")
        assert await source.detach_filesystems([attachment(config, made, path)]) == [None]
        assert os.listdir(path) == []
        other = tmp_path / "other"
        await attach(source, attachment(config, made, other))
        assert await read(other / "file") == b"kept"
        # While it is mounted.
        assert await source.destroy_filesystems([made.filesystem_id]) == [None]
        assert os.listdir(other) == []
        with pytest.raises(VolumeNotFound, match=f"{made.filesystem_id} not found"):
            await attach(source, attachment(config, made, other))

    async def test_asked_for_again_it_is_the_same_and_grows_if_it_has_to(
        self, source: FilesystemSource, config: Config
    ) -> None:
        made = await create(source, wanted(config))
        assert await create(source, wanted(config, size=10)) == made
        larger = await create(source, wanted(config, size=made.size + 1))
        assert larger.filesystem_id == made.filesystem_id
        assert larger.size > made.size

    async def test_each_has_its_own_result_in_the_order_of_the_call(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        bad = msgspec.structs.replace(wanted(config, 1), provider="nobody's")
        results = await source.create_filesystems([wanted(config, 0), bad, wanted(config, 2)])
        assert [result.filesystem.tag.id if result.filesystem else None for result in results] == ["0", None, "2"]
        assert isinstance(results[1].error, InvalidArgument)
        ids = [results[2].filesystem.filesystem_id, MISSING] if results[2].filesystem else []
        assert await source.destroy_filesystems([MISSING, *ids]) == [None, None, None]
        errors = await source.release_filesystems([MISSING, *ids])
        assert [type(error) for error in errors] == [VolumeNotFound] * 3

    async def test_it_can_be_mounted_as_it_is_made(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        nothing = Filesystem(tag=FilesystemTag("0"), filesystem_id="", size=0)
        params = msgspec.structs.replace(wanted(config), attachment=attachment(config, nothing, tmp_path / "here"))
        made = await create(source, params)
        assert is_mount(tmp_path / "here")
        # As after a restart.
        assert await create(source, params) == made
        await attach(source, attachment(config, made, tmp_path / "here"))

    async def test_mounting_it_where_it_is_mounted_is_the_same_attachment(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        made = await create(source, wanted(config))
        params = attachment(config, made, tmp_path / "here")
        first = await attach(source, params)
        await write(tmp_path / "here" / "file", b"there")
        assert await attach(source, params) == first
        with pytest.raises(VolumeAttached, match=re.escape(f"is attached to {params.path} already")):
            await attach(source, attachment(config, made, tmp_path / "there"))
        with pytest.raises(VolumeAttached):
            await attach(source, msgspec.structs.replace(params, read_only=True))
        assert await read(tmp_path / "here" / "file") == b"there"

    async def test_a_read_only_attachment_cannot_be_written(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        made = await create(source, wanted(config))
        params = msgspec.structs.replace(attachment(config, made, tmp_path / "here"), read_only=True)
        assert (await attach(source, params)).read_only
        with pytest.raises(OSError, match="Read-only file system"):
            await write(tmp_path / "here" / "file", b"")

    async def test_what_is_not_mounted_can_be_unmounted_and_what_is_gone(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        made = await create(source, wanted(config))
        gone = msgspec.structs.replace(made, filesystem_id=MISSING)
        await attach(source, attachment(config, made, tmp_path / "here"))
        params = [attachment(config, one, tmp_path / "there") for one in (made, gone)]
        assert await source.detach_filesystems(params) == [None, None]
        assert is_mount(tmp_path / "here")

    async def test_it_is_mounted_on_empty_directories_alone(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        made = await create(source, wanted(config))
        (tmp_path / "file").write_bytes(b"mine")
        for path, error in (
            ("", "filesystem mountpoint not specified"),
            (tmp_path / "file", "must be a directory"),
            (tmp_path, "is not empty"),
        ):
            with pytest.raises(FusevolError, match=error):
                await attach(source, attachment(config, made, path))
        assert (tmp_path / "file").read_bytes() == b"mine"

    async def test_what_is_released_keeps_what_it_holds_and_can_be_imported(
        self, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        tagged = msgspec.structs.replace(wanted(config), resource_tags={"model": "one"})
        made = await create(source, tagged)
        params = attachment(config, made, tmp_path / "here")
        await attach(source, params)
        await write(tmp_path / "here" / "file", b"kept")
        error = raised(await source.release_filesystems([made.filesystem_id]))
        assert isinstance(error, VolumeAttached)
        assert "attachments still active" in str(error)
        await source.detach_filesystems([params])
        assert await source.release_filesystems([made.filesystem_id]) == [None]
        assert isinstance(raised(await source.destroy_filesystems([made.filesystem_id])), InvalidArgument)
        importer = getattr(source, "import_filesystem", None)
        if importer is None:
            return
        info = await importer(made.filesystem_id, {"model": "two"})
        assert (info.filesystem_id, info.size) == (made.filesystem_id, made.size)
        await attach(source, params)
        assert await read(tmp_path / "here" / "file") == b"kept"
        with pytest.raises(VolumeAttached, match='cannot import volume with status "in-use"'):
            await importer(made.filesystem_id, {})
        with pytest.raises(VolumeNotFound):
            await importer(MISSING, {})

    async def test_what_cannot_be_made_is_refused_without_making_it(self, provider: Provider, config: Config) -> None:
        source = provider.filesystem_source(config)
        for changes in (
            {"provider": "another"},
            {"attributes": {"no such": "attribute"}},
            {"attributes": {"sticky": object()}},
            {"resource_tags": {"a key": "1"}},
            {"size": 1 << 60},
        ):
            with pytest.raises(InvalidArgument):
                source.validate_filesystem_params(msgspec.structs.replace(wanted(config), **changes))
        if not provider.supports(StorageKind.BLOCK):
            with pytest.raises(NotSupported):
                source.validate_filesystem_params(msgspec.structs.replace(wanted(config), volume=VolumeTag("0")))
