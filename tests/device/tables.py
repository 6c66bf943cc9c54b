"""The tables of a device, as plain SQLite finds them: what they say must fit together."""

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MIB = 1 << 20
BLOCK = 4096


def rows(device: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a copy of the tables answers. Their checksums are in bytes that SQLite does not look at."""
    with TemporaryDirectory() as directory, open(device, "rb") as file:
        head = file.read(72)
        places = [int.from_bytes(head[at : at + 8], "little") for at in (32, 40, 48, 56)]
        for name, (offset, size) in {"t-journal": (places[0], places[1]), "t": (places[2], places[3])}.items():
            file.seek(offset)
            Path(directory, name).write_bytes(file.read(size))
        with closing(sqlite3.connect(Path(directory, "t"))) as connection:
            return connection.execute(sql).fetchall()


def verify(device: Path) -> dict[str, int]:
    """Each block is somebody's or free, and nobody's twice. Returns how many blocks each volume has."""
    assert rows(device, "PRAGMA integrity_check") == [("ok",)]
    [(blocks, counted)] = rows(device, "SELECT blocks, free FROM device")
    with open(device, "rb") as file:
        data = int.from_bytes(file.read(72)[64:72], "little") // BLOCK
    free = rows(device, "SELECT address, count FROM free ORDER BY address")
    extents = rows(device, "SELECT address, count FROM extent")
    at = data
    for address, count in sorted(free + extents):
        assert address == at, f"block {at} is nobody's" if address > at else f"block {address} is somebody's twice"
        assert count > 0
        at += count
    assert at == blocks
    assert counted == sum(count for _, count in free)
    assert not {sum(run) for run in free} & {address for address, _ in free}, "free runs that touch are one"
    owned = dict(rows(device, "SELECT volume, sum(count) FROM extent GROUP BY volume"))
    names = {}
    for number, name, has in rows(device, "SELECT number, id, blocks FROM volume"):
        assert owned.pop(number, 0) == has
        names[str(name)] = has
    assert not owned, "extents of volumes that there are none of"
    for number in [row[0] for row in rows(device, "SELECT number FROM volume")]:
        end = 0
        for start, count in rows(device, f"SELECT start, count FROM extent WHERE volume = {number} ORDER BY start"):
            assert start >= end, "extents that overlap"
            end = start + count
    return names
