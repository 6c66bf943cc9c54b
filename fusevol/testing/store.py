# ruff: noqa: D102 - the names of the tests are the sentences
"""StoreContract: the tests that a store of volume records must pass. Needs pytest and pytest-trio in trio mode.

    class TestShelfStore(StoreContract):
        @pytest.fixture
        async def store(self, tmp_path):
            store = ShelfStore(tmp_path, wait=0.05)
            yield store
            await store.aclose()

        @pytest.fixture
        def reopen(self, tmp_path):
            return lambda: ShelfStore(tmp_path, wait=0.05)

`store` is a fresh, empty one that does not wait long for locks. `reopen` makes another instance on the same
records, as another process would; leave it out where there can be none.
"""

from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio

from fusevol.api import LockToken, Secret, Source, StoreEnumerator, Volume, VolumeLocator, VolumeSpec
from fusevol.errors import AlreadyExists, InvalidArgument, ManifestConflict, VolumeBusy, VolumeNotFound

__all__ = ["Reopen", "StoreContract", "record"]

Reopen = Callable[[], Any]


def record(volume_id: str, name: str, *, parent: str = "", readonly: bool = False, **locator: Any) -> Volume:
    """A record, of a snapshot where it has a parent and is read-only."""
    return Volume(
        id=volume_id, locator=VolumeLocator(name=name, **locator), ctime=datetime(2030, 1, 2, tzinfo=UTC),
        source=Source(parent=parent), readonly=readonly,
    )  # fmt: skip


def renamed(volume: Volume, name: str) -> Volume:
    """The same record under another name."""
    return msgspec.structs.replace(volume, locator=VolumeLocator(name=name))


class StoreContract:
    """Derive a class of tests from this one, with the fixtures `store` and, where there can be one, `reopen`."""

    @pytest.fixture
    def reopen(self) -> Reopen:
        pytest.skip("there is no second way to these records")

    # -- records ----------------------------------------------------------------------------------

    async def test_a_record_comes_back_as_it_was(self, store: StoreEnumerator) -> None:
        volume = record("id-1", "web", volume_labels={"a": "b"}, group="g")
        await store.create_vol(volume)
        assert await store.get_vol("id-1") == volume

    async def test_a_record_that_is_not_there_cannot_be_had_changed_or_deleted(self, store: StoreEnumerator) -> None:
        volume = record("id-1", "web")
        with pytest.raises(VolumeNotFound, match="id-1"):
            await store.get_vol("id-1")
        with pytest.raises(VolumeNotFound, match="id-1"):
            await store.update_vol(volume, volume)
        with pytest.raises(VolumeNotFound, match="id-1"):
            await store.delete_vol("id-1")

    async def test_a_deleted_record_is_gone_and_its_name_is_free(self, store: StoreEnumerator) -> None:
        await store.create_vol(record("id-1", "web"))
        await store.delete_vol("id-1")
        assert await store.enumerate() == []
        await store.create_vol(record("id-2", "web"))

    async def test_an_id_is_given_once(self, store: StoreEnumerator) -> None:
        await store.create_vol(record("id-1", "web"))
        with pytest.raises(AlreadyExists, match="id-1"):
            await store.create_vol(record("id-1", "db"))
        assert [volume.locator.name for volume in await store.enumerate()] == ["web"]

    async def test_a_name_is_given_once_among_volumes(self, store: StoreEnumerator) -> None:
        await store.create_vol(record("id-1", "web"))
        with pytest.raises(AlreadyExists, match="web"):
            await store.create_vol(record("id-2", "web"))
        with pytest.raises(AlreadyExists, match="web"):
            await store.create_vol(record("id-2", "web", parent="id-1"))

    async def test_a_name_is_given_once_among_the_snapshots_of_a_volume_only(self, store: StoreEnumerator) -> None:
        for volume_id, name in [("id-1", "web"), ("id-2", "db")]:
            await store.create_vol(record(volume_id, name))
        await store.create_vol(record("s-1", "web", parent="id-1", readonly=True))
        await store.create_vol(record("s-2", "web", parent="id-2", readonly=True))
        with pytest.raises(AlreadyExists, match="web"):
            await store.create_vol(record("s-3", "web", parent="id-1", readonly=True))

    async def test_an_update_of_what_was_read_takes_effect(self, store: StoreEnumerator) -> None:
        before = record("id-1", "web")
        await store.create_vol(before)
        after = renamed(before, "www")
        await store.update_vol(after, before)
        assert await store.get_vol("id-1") == after
        await store.create_vol(record("id-2", "web"))

    async def test_an_update_that_lost_its_race_changes_nothing(self, store: StoreEnumerator) -> None:
        first = record("id-1", "web")
        await store.create_vol(first)
        second = renamed(first, "www")
        await store.update_vol(second, first)
        with pytest.raises(ManifestConflict, match="id-1"):
            await store.update_vol(renamed(first, "lost"), first)
        assert await store.get_vol("id-1") == second

    async def test_of_many_updates_of_the_same_record_one_wins(self, store: StoreEnumerator) -> None:
        before = record("id-1", "web")
        await store.create_vol(before)
        won: list[str] = []

        async def rename(name: str) -> None:
            try:
                await store.update_vol(renamed(before, name), before)
            except ManifestConflict:
                return
            won.append(name)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(rename, f"n{number}")
        assert [(await store.get_vol("id-1")).locator.name] == won

    async def test_of_many_records_of_one_name_one_is_made(self, store: StoreEnumerator) -> None:
        made: list[str] = []

        async def create(volume_id: str) -> None:
            try:
                await store.create_vol(record(volume_id, "web"))
            except AlreadyExists:
                return
            made.append(volume_id)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(create, f"id-{number}")
        assert [volume.id for volume in await store.enumerate()] == made
        assert len(made) == 1

    async def test_a_record_that_was_deleted_meanwhile_is_not_brought_back(self, store: StoreEnumerator) -> None:
        web = record("id-1", "web")
        await store.create_vol(web)
        await store.delete_vol("id-1")
        with pytest.raises(VolumeNotFound, match="id-1"):
            await store.update_vol(renamed(web, "www"), web)
        # Made anew, it is another record, though it has the same id.
        await store.create_vol(msgspec.structs.replace(web, readonly=True))
        with pytest.raises(ManifestConflict, match="id-1"):
            await store.update_vol(renamed(web, "www"), web)

    async def test_an_update_cannot_take_a_name_that_is_taken(self, store: StoreEnumerator) -> None:
        web = record("id-1", "web")
        await store.create_vol(web)
        await store.create_vol(record("id-2", "db"))
        with pytest.raises(AlreadyExists, match="db"):
            await store.update_vol(renamed(web, "db"), web)
        assert [volume.locator.name for volume in await store.enumerate()] == ["db", "web"]

    async def test_an_update_cannot_change_an_id(self, store: StoreEnumerator) -> None:
        web = record("id-1", "web")
        await store.create_vol(web)
        with pytest.raises(InvalidArgument):
            await store.update_vol(record("id-2", "web"), web)

    async def test_a_passphrase_is_not_kept_and_does_not_count_in_a_comparison(self, store: StoreEnumerator) -> None:
        plain = record("id-1", "web")
        secret = msgspec.structs.replace(plain, spec=VolumeSpec(encrypted=True, passphrase=Secret("sesame")))
        await store.create_vol(secret)
        assert (await store.get_vol("id-1")).spec.passphrase is None
        await store.update_vol(renamed(secret, "www"), secret)

    # -- searching --------------------------------------------------------------------------------

    async def test_inspect_takes_ids_and_names_and_leaves_out_what_is_not_there(self, store: StoreEnumerator) -> None:
        web, db = record("id-1", "web"), record("id-2", "db")
        await store.create_vol(web)
        await store.create_vol(db)
        assert await store.inspect(["db", "nope", "id-1", "web"]) == [db, web]
        assert await store.inspect([]) == []

    async def test_a_volume_that_is_called_like_anothers_id_does_not_hide_it(self, store: StoreEnumerator) -> None:
        web, impostor = record("id-1", "web"), record("id-2", "id-1")
        await store.create_vol(impostor)
        await store.create_vol(web)
        assert await store.inspect(["id-1"]) == [web]
        assert await store.get_vol("id-1") == web
        await store.delete_vol("id-1")
        assert await store.inspect(["id-1"]) == [impostor]

    async def test_a_snapshot_is_not_found_by_its_name_alone(self, store: StoreEnumerator) -> None:
        await store.create_vol(record("id-1", "web"))
        await store.create_vol(record("s-1", "before", parent="id-1", readonly=True))
        assert await store.inspect(["before"]) == []

    async def test_enumerate_matches_whole_names_by_expression(self, store: StoreEnumerator) -> None:
        for volume_id, name in [("id-1", "web-1"), ("id-2", "web-2"), ("id-3", "my-web-1")]:
            await store.create_vol(record(volume_id, name))

        async def names(expression: str) -> list[str]:
            return [volume.locator.name for volume in await store.enumerate(VolumeLocator(name=expression))]

        assert await names("web-1") == ["web-1"]
        assert await names("web-.*") == ["web-1", "web-2"]
        assert await names("web") == []
        with pytest.raises(InvalidArgument, match="regular expression"):
            await names("(")

    async def test_enumerate_wants_all_that_is_asked_for(self, store: StoreEnumerator) -> None:
        a = record("id-1", "a", volume_labels={"app": "web", "env": "test"}, group="g", ownership="me")
        b = record("id-2", "b", volume_labels={"app": "web"})
        for volume in (a, b):
            await store.create_vol(volume)
        assert await store.enumerate(labels={"app": "web"}) == [a, b]
        assert await store.enumerate(VolumeLocator(volume_labels={"env": "test"}), {"app": "web"}) == [a]
        assert await store.enumerate(VolumeLocator(volume_labels={"app": "db"}), {"app": "web"}) == []
        assert await store.enumerate(VolumeLocator(name="b"), {"env": "test"}) == []
        assert await store.enumerate(VolumeLocator(group="g")) == [a]
        assert await store.enumerate(VolumeLocator(ownership="you")) == []
        assert await store.enumerate(VolumeLocator(volume_ids=("id-2", "id-3"))) == [b]
        assert await store.enumerate(VolumeLocator(), {}) == [a, b]

    async def test_snap_enumerate_finds_direct_children(self, store: StoreEnumerator) -> None:
        snapshot = record("s-1", "before", parent="id-1", readonly=True, volume_labels={"why": "upgrade"})
        clone = record("id-2", "web-2", parent="s-1")
        for volume in (record("id-1", "web"), snapshot, clone):
            await store.create_vol(volume)
        assert await store.snap_enumerate() == [snapshot, clone]
        assert await store.snap_enumerate(["id-1"]) == [snapshot]
        assert await store.snap_enumerate(["s-1", "nope"]) == [clone]
        assert await store.snap_enumerate([]) == []
        assert await store.snap_enumerate(["nope"]) == []
        assert await store.snap_enumerate(None, {"why": "upgrade"}) == [snapshot]

    # -- locks ------------------------------------------------------------------------------------

    async def test_a_lock_excludes_others_until_it_is_released(self, store: StoreEnumerator) -> None:
        token = await store.lock("id-1")
        with pytest.raises(VolumeBusy, match="id-1"):
            await store.lock("id-1")
        await store.unlock(token)
        await store.unlock(await store.lock("id-1"))

    async def test_a_lock_is_of_one_id_and_needs_no_record(self, store: StoreEnumerator) -> None:
        first, second = await store.lock("id-1"), await store.lock("id-2")
        await store.unlock(second)
        await store.unlock(first)

    async def test_who_waits_gets_the_lock_once_it_is_free(self, store: StoreEnumerator) -> None:
        token = await store.lock("id-1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.unlock, token)
            token = await store.lock("id-1")
        await store.unlock(token)

    async def test_those_who_want_one_lock_have_it_one_at_a_time(self, store: StoreEnumerator) -> None:
        inside: list[int] = []

        async def work(number: int) -> None:
            while True:
                try:
                    token = await store.lock("id-1")
                except VolumeBusy:
                    continue
                break
            inside.append(number)
            await trio.lowlevel.checkpoint()
            assert inside == [number]
            inside.clear()
            await store.unlock(token)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(work, number)

    async def test_a_lock_is_released_with_its_token_only_and_once(self, store: StoreEnumerator) -> None:
        used = await store.lock("id-1")
        await store.unlock(used)
        for token in (used, LockToken("id-1"), LockToken(None)):
            with pytest.raises(InvalidArgument):
                await store.unlock(token)
        held = await store.lock("id-1")
        with pytest.raises(InvalidArgument):
            await store.unlock(used)
        with pytest.raises(VolumeBusy):
            await store.lock("id-1")
        await store.unlock(held)

    async def test_a_lock_is_released_though_its_task_was_cancelled(self, store: StoreEnumerator) -> None:
        token = await store.lock("id-1")
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.unlock(token)
        await store.unlock(await store.lock("id-1"))

    async def test_a_lock_with_a_bad_id_is_refused(self, store: StoreEnumerator) -> None:
        with pytest.raises(InvalidArgument):
            await store.lock("")

    # -- several users ----------------------------------------------------------------------------

    async def test_another_instance_sees_records_and_locks(self, store: StoreEnumerator, reopen: Reopen) -> None:
        web = record("id-1", "web")
        await store.create_vol(web)
        token = await store.lock("id-1")
        async with aclosing(reopen()) as other:
            assert await other.get_vol("id-1") == web
            with pytest.raises(VolumeBusy, match="id-1"):
                await other.lock("id-1")
            await other.unlock(token)
            await other.update_vol(renamed(web, "www"), web)
        with pytest.raises(ManifestConflict):
            await store.update_vol(renamed(web, "lost"), web)
        await store.unlock(await store.lock("id-1"))
