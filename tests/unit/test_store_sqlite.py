# ruff: noqa: ASYNC240 - files are small, and nobody else waits
"""What the SQLite store does beyond the contract: processes that die, files that are damaged, several at once."""

import json
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from fusevol.api import VolumeState
from fusevol.driver.attachment import believed
from fusevol.errors import BackendError, CorruptData, NotSupported, OutOfMemory, VolumeBusy
from fusevol.store import Process, SqliteStore, schema, this_node
from fusevol.store.schema import _MIGRATIONS, SCHEMA_VERSION
from fusevol.testing.store import record, renamed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "fusevol.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with aclosing(SqliteStore(path, wait=0.05, command="fusevol scrub web")) as store:
        yield store


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def run_at_once(count: int, code: str, *arguments: object) -> list[int]:
    """Run the same code in several processes; return their exit statuses."""
    others = [python(code, *arguments) for _ in range(count)]
    for other in others:
        other.communicate()
    return [other.returncode for other in others]


LOCKS_AND_WAITS = """
import sys, trio
from fusevol.store import SqliteStore
async def main():
    store = SqliteStore(sys.argv[1], wait=1, command="fusevol gc")
    await store.lock("id-1")
    print("locked", flush=True)
    sys.stdin.read()
trio.run(main)
"""


async def test_who_cannot_have_a_lock_is_told_who_has_it(store: SqliteStore) -> None:
    await store.lock("id-1")
    with pytest.raises(VolumeBusy) as caught:
        await store.lock("id-1")
    assert str(caught.value) == f'volume "id-1" is in use by process {os.getpid()} (fusevol scrub web)'


async def test_a_lock_of_another_process_holds_until_that_dies(store: SqliteStore) -> None:
    other = python(LOCKS_AND_WAITS, store.path)
    assert other.stdout
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(VolumeBusy, match=rf"process {other.pid} \(fusevol gc\)"):
        await store.lock("id-1")
    assert [(held.volume_id, held.owner.pid) for held in await store.locks()] == [("id-1", other.pid)]
    other.kill()
    other.communicate()
    assert await store.locks() == []
    await store.unlock(await store.lock("id-1"))


async def test_a_lock_from_before_a_reboot_or_of_a_reused_pid_is_void(store: SqliteStore, path: Path) -> None:
    me = Process.current()
    for owner in (msgspec.structs.replace(me, boot="another"), msgspec.structs.replace(me, start=me.start - 1)):
        await store.lock("id-1")
        with sqlite3.connect(path) as db:
            db.execute("update locks set owner = ?", [msgspec.json.encode(owner)])
        db.close()
        await store.unlock(await store.lock("id-1"))


def test_a_process_in_another_pid_namespace_is_taken_for_alive() -> None:
    me = Process.current()
    assert me.alive
    assert msgspec.structs.replace(me, namespace="pid:[1]", start=0).alive


def test_a_process_that_ended_is_not_alive_though_nobody_asked_how() -> None:
    ended = subprocess.Popen(["sleep", "100"])
    process = msgspec.structs.replace(Process.current(), pid=ended.pid, start=_start_of(ended.pid))
    before = process.alive
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    while_zombie = process.alive
    ended.wait()
    assert (before, while_zombie, process.alive) == (True, False, False)


def _start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


COUNTS_UP = """
import sys, msgspec, trio
from fusevol.errors import AlreadyExists, ManifestConflict
from fusevol.store import SqliteStore
from fusevol.testing.store import record
async def main():
    store = SqliteStore(sys.argv[1], wait=30)
    try:
        await store.create_vol(record("id-1", "web", volume_labels={"count": "0"}))
    except AlreadyExists:
        pass
    done = 0
    while done < int(sys.argv[2]):
        before = await store.get_vol("id-1")
        labels = {"count": str(int(before.locator.volume_labels["count"]) + 1)}
        locator = msgspec.structs.replace(before.locator, volume_labels=labels)
        try:
            await store.update_vol(msgspec.structs.replace(before, locator=locator), before)
        except ManifestConflict:
            continue
        done += 1
trio.run(main)
"""


async def test_processes_that_update_one_record_at_once_lose_no_update(store: SqliteStore) -> None:
    # The database does not exist yet: they also race to make it.
    assert run_at_once(3, COUNTS_UP, store.path, 20) == [0, 0, 0]
    assert (await store.get_vol("id-1")).locator.volume_labels == {"count": "60"}


TAKES_TURNS = """
import sys, trio
from pathlib import Path
from fusevol.store import SqliteStore
async def main():
    store = SqliteStore(sys.argv[1], wait=60)
    for _ in range(int(sys.argv[2])):
        token = await store.lock("id-1")
        marker = Path(sys.argv[3])
        marker.touch(exist_ok=False)
        await trio.sleep(0)
        marker.unlink()
        await store.unlock(token)
trio.run(main)
"""


async def test_of_processes_that_lock_one_id_one_is_inside_at_a_time(store: SqliteStore, tmp_path: Path) -> None:
    assert run_at_once(3, TAKES_TURNS, store.path, 10, tmp_path / "inside") == [0, 0, 0]


# -- what is on the disk ------------------------------------------------------------------------------


async def test_records_are_there_when_the_store_is_opened_again(path: Path) -> None:
    web = record("id-1", "web")
    async with aclosing(SqliteStore(path)) as store:
        await store.create_vol(web)
    async with aclosing(SqliteStore(path)) as store:
        assert await store.get_vol("id-1") == web
        assert await store.verify() == 1


async def test_commits_are_synced(store: SqliteStore) -> None:
    await store.enumerate()
    assert store._db
    assert store._db.execute("pragma synchronous").fetchone() == (2,)
    assert store._db.execute("pragma journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "content", [b"this is no database at all, but some text" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
async def test_a_file_that_is_no_database_is_one_clear_error(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    async with aclosing(SqliteStore(path, wait=0.05)) as store:
        with pytest.raises(CorruptData, match=r"fusevol\.db are damaged") as caught:
            await store.enumerate()
    assert caught.value.hint
    assert "backup" in caught.value.hint
    assert path.read_bytes() == content


async def test_a_record_that_was_damaged_is_an_error_that_names_it(store: SqliteStore, path: Path) -> None:
    await store.create_vol(record("id-1", "web"))
    with sqlite3.connect(path) as db:
        db.execute("update volumes set record = cast(replace(record, 'web', 'wef') as blob)")
    db.close()
    with pytest.raises(CorruptData, match="record of volume id-1"):
        await store.get_vol("id-1")


async def test_a_database_with_damaged_pages_is_found_by_verify(path: Path) -> None:
    async with aclosing(SqliteStore(path)) as store:
        for number in range(200):
            await store.create_vol(record(f"id-{number}", f"web-{number}"))
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(content)
    async with aclosing(SqliteStore(path)) as store:
        with pytest.raises(CorruptData, match=r"fusevol\.db are damaged"):
            await store.verify()


async def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 7")
    db.close()
    async with aclosing(SqliteStore(path)) as store:
        with pytest.raises(CorruptData, match="some other program"):
            await store.enumerate()


async def test_a_store_that_gets_no_memory_says_so(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("out of memory")
    error.sqlite_errorcode = sqlite3.SQLITE_NOMEM

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(store, "_get", fail)
    with pytest.raises(OutOfMemory):
        await store.get_vol("web")


async def test_a_later_schema_is_not_touched(store: SqliteStore, path: Path) -> None:
    await store.create_vol(record("id-1", "web"))
    with sqlite3.connect(path) as db:
        db.execute(f"pragma user_version = {SCHEMA_VERSION + 1}")
    db.close()
    async with aclosing(SqliteStore(path)) as later:
        with pytest.raises(NotSupported, match=rf"schema {SCHEMA_VERSION + 1}; this one knows {SCHEMA_VERSION}"):
            await later.enumerate()


async def test_a_state_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with aclosing(SqliteStore(tmp_path / "file" / "fusevol.db")) as store:
        with pytest.raises(BackendError, match="cannot be made") as caught:
            await store.enumerate()
    assert caught.value.hint
    assert "--home" in caught.value.hint


READS = """
import os, sys, trio
from fusevol.api import VolumeState
from fusevol.driver.attachment import believed
from fusevol.errors import BackendError
from fusevol.store import SqliteStore
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
async def main():
    try:
        await SqliteStore(sys.argv[1], wait=0.05).enumerate()
    except BackendError as error:
        print(error)
trio.run(main)
"""


async def test_a_state_directory_of_somebody_else_is_one_clear_error(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    other = python(READS, home / "fusevol.db")
    assert "cannot be used" in other.communicate()[0]
    assert list(home.iterdir()) == []


#: What the first version made, and what it wrote.
VERSION_1 = """
    pragma journal_mode = wal;
    create table volumes (
      id text primary key, scope text not null, name text not null, parent text not null,
      record blob not null, checksum integer not null, unique (scope, name)
    ) strict, without rowid;
    create index volumes_by_parent on volumes (parent);
    create table locks (
      id text primary key, token text not null unique, owner blob not null, since real not null
    ) strict, without rowid;
    pragma application_id = 0x66757376;
    pragma user_version = 1;
"""
RECORD_1 = (
    '{"id":"id-1","locator":{"name":"web","volume_labels":{"fusevol.pool":"default"},"ownership":"","group":"",'
    '"volume_ids":[]},"ctime":"2030-01-02T00:00:00Z","source":{"parent":"","seed":""},"readonly":false,"spec":{'
    '"ephemeral":false,"size":1048576,"format":"fuse","block_size":0,"cos":"none","io_profile":"auto",'
    '"snapshot_interval":0,"snapshot_schedule":"","shared":false,"encrypted":false,"passphrase":null,"sticky":false,'
    '"group":"","compressed":false,"dedupe":false,"io_strategy":null,"io_throttle":null,"readahead":true,'
    '"mount_options":{},"scan_policy":{"trigger":"none","action":"none"},"checksummed":true},"usage":{"exclusive":0,'
    '"shared":0},"format":"fuse","status":"up","state":"attached","attached_on":"HOST","attached_state":"external",'
    '"device_path":"","attach_path":["/mnt/web"],"attach_info":{"server":"{\\"pid\\":1234,\\"start\\":5678,'
    '\\"boot\\":\\"0b1d\\",\\"namespace\\":\\"pid:[4026531836]\\",\\"command\\":\\"serving /mnt/web\\"}"},'
    '"runtime_state":[],"error":"","attach_time":"2030-01-03T00:00:00Z","detach_time":null,"mount_options":{},'
    '"last_scan":null,"last_scan_status":"unknown","volume_consumers":[]}'
)
OWNER_1 = '{"pid":1234,"start":5678,"boot":"0b1d","namespace":"pid:[4026531836]","command":"fusevol gc"}'


def make_version_1(path: Path) -> None:
    path.parent.mkdir()
    text = RECORD_1.replace("HOST", this_node()).encode()
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(VERSION_1)
    db.execute("insert into volumes values (?, ?, ?, ?, ?, ?)", ["id-1", "", "web", "", text, zlib.crc32(text)])
    db.execute("insert into locks values (?, ?, ?, ?)", ["id-1", "0" * 32, OWNER_1.encode(), 1.9e9])
    db.close()


async def test_the_records_of_the_first_version_are_taken_over(path: Path) -> None:
    make_version_1(path)
    async with aclosing(SqliteStore(path, wait=0.05)) as store:
        [volume] = await store.enumerate()
        assert (volume.id, volume.locator.name, volume.spec.size) == ("id-1", "web", 1 << 20)
        # It was attached before a reboot, and so was the lock held.
        assert believed(volume).state is VolumeState.DETACHED
        await store.unlock(await store.lock("id-1"))
        assert await store.in_state(VolumeState.ATTACHED) == [volume]
        await store.update_vol(renamed(volume, "www"), volume)
        assert await store.verify() == 1
    db = sqlite3.connect(path)
    assert db.execute("pragma user_version").fetchone() == (SCHEMA_VERSION,)
    db.close()


async def test_a_migration_that_fails_leaves_the_version_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version_1(path)
    broken = (*_MIGRATIONS[:1], ("drop table locks", "create index broken on nothing (nothing)"))
    monkeypatch.setattr(schema, "_MIGRATIONS", broken)
    async with aclosing(SqliteStore(path)) as store:
        with pytest.raises(BackendError, match=r"fusevol\.db cannot be used"):
            await store.enumerate()
    monkeypatch.undo()
    async with aclosing(SqliteStore(path)) as store:
        assert [volume.id for volume in await store.enumerate()] == ["id-1"]
        assert await store.locks() == []


LISTS = """
import sys, trio
from fusevol.store import SqliteStore
assert [volume.id for volume in trio.run(SqliteStore(sys.argv[1]).enumerate)] == ["id-1"]
"""


async def test_processes_that_find_an_old_database_at_once_migrate_it_once(path: Path) -> None:
    make_version_1(path)
    assert run_at_once(3, LISTS, path) == [0, 0, 0]
    async with aclosing(SqliteStore(path)) as store:
        assert await store.verify() == 1


async def test_few_of_many_are_found_by_their_state_without_reading_the_others(store: SqliteStore) -> None:
    for number, state in enumerate([VolumeState.AVAILABLE, VolumeState.ATTACHED, VolumeState.PENDING]):
        volume = msgspec.structs.replace(record(f"id-{number}", f"web-{number}"), state=state)
        await store.create_vol(volume)
    found = await store.in_state(VolumeState.PENDING, VolumeState.ATTACHED)
    assert [volume.id for volume in found] == ["id-1", "id-2"]
    await store.update_vol(msgspec.structs.replace(found[0], state=VolumeState.DETACHED), found[0])
    assert [volume.id for volume in await store.in_state(VolumeState.DETACHED)] == ["id-1"]
    assert store._db
    plan = store._db.execute(
        "explain query plan select id from volumes where json_extract(cast(record as text), '$.state') in ('attached')"
    ).fetchall()
    assert "volumes_by_state" in plan[0][3]


def test_the_tables_are_what_the_next_version_will_find(tmp_path: Path) -> None:
    """A change here needs a migration, and a test of it with a database of the version before."""
    import trio

    async def make() -> None:
        async with aclosing(SqliteStore(tmp_path / "fusevol.db")) as store:
            await store.create_vol(record("id-1", "web"))

    trio.run(make)
    db = sqlite3.connect(tmp_path / "fusevol.db")
    columns = {table: [row[1] for row in db.execute(f"pragma table_info({table})")] for table in ("volumes", "locks")}
    stored = json.loads(db.execute("select record from volumes").fetchone()[0])
    db.close()
    assert SCHEMA_VERSION == 2
    assert columns == {
        "volumes": ["id", "scope", "name", "parent", "record", "checksum"],
        "locks": ["id", "token", "owner", "since"],
    }
    assert stored["id"] == "id-1"
