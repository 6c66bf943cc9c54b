"""PostgreSQL on a mounted volume: crashes of it and of the mount, snapshots and clones; no committed row is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.harness import Bench, Volume, public_directory, seed, until
from tests.e2e.postgres import Client, Postgres


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Volume, Postgres]]:
    """PostgreSQL on a volume, with pgbench's tables and one for rows; mounted where every user can reach it."""
    with public_directory() as public:
        bench = Bench(public, 300)
        with bench.watched():
            volume = Volume(bench, tmp_path_factory.mktemp("postgres") / "home", path=public / "mnt").create().mount()
            database = Postgres(bench, volume.path / "data", public / "sockets").create().start()
            database.run("pgbench", "-i", "-q", "-s", "1", "postgres")
            database.ask("CREATE TABLE row (client integer, n integer, PRIMARY KEY (client, n))")
            yield volume, database


def _lost(database: Postgres, client: Client, committed: int) -> list[str]:
    return database.ask(
        f"SELECT g FROM generate_series(0, {committed - 1}) g WHERE NOT EXISTS "
        f"(SELECT FROM row WHERE client = {client.number} AND n = g)"
    )


def test_postgres_recovers_from_its_own_crash_and_from_that_of_the_mount(server: tuple[Volume, Postgres]) -> None:
    """kill -9 of the postmaster; then kill -9 of the mount process; each under load."""
    volume, database = server
    bench, start = volume.bench, seed()
    total = 0
    for number, victim in enumerate(("postgres", "mount")):
        client = Client(bench, database, number)
        load = database.pgbench(60, start + number)
        until(lambda c=client: c.committed > 100, "rows to be committed")  # type: ignore[misc]
        if victim == "postgres":
            database.kill()
        else:
            volume.kill()
            database.gone()
        client.end()
        load.kill()
        bench.finish(load)
        if victim == "mount":
            volume.mount()
        database.start()
        committed = client.committed
        assert committed > 100
        assert _lost(database, client, committed) == [], f"of {committed} committed rows ({victim} was killed)"
        database.verify()
        total += committed
    print(f"{total} rows committed, none lost")
    volume.check()


def test_a_clone_of_a_snapshot_taken_under_load_recovers_as_a_server_of_its_own(
    server: tuple[Volume, Postgres],
) -> None:
    volume, database = server
    bench = volume.bench
    client = Client(bench, database, 50)
    load = database.pgbench(60, seed())
    until(lambda: client.committed > 200, "rows to be committed")
    before = client.committed
    volume.command("snapshot", "busy")
    until(lambda: client.committed > before + 100, "the work to go on")
    other = Volume(bench, volume.home, "copy", bench.place / "copy")
    other.fusevol("clone", "web@busy", "copy")
    other.mount()
    (other.path / "data" / "postmaster.pid").unlink()
    second = Postgres(bench, other.path / "data", bench.place / "sockets-2").start()
    assert _lost(second, client, before) == []
    second.verify()
    second.ask("INSERT INTO row VALUES (99, 1)")
    assert database.ask("SELECT count(*) FROM row WHERE client = 99") == ["0"]
    assert client.committed > before
    load.kill()
    bench.finish(load)
    client.end()
    database.verify()
    for running in (second, database):
        running.stop()
    for mounted in (other, volume):
        mounted.umount()
        mounted.check()
