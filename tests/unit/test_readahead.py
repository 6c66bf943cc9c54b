"""Reading ahead: whoever reads on finds it fetched, and nobody else has anything fetched."""

import os
import random
from itertools import pairwise

import pytest

from fusevol.backends.readahead import ReadAhead

BLOCK, MIB = 4096, 1 << 20
#: Where the log is in the file: reads of the log at `SHIFT` are of the file's beginning.
SHIFT = 5 << 30


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the kernel was asked to fetch, as offsets of the log: from where, to where."""
    asked: list[tuple[int, int]] = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        assert (fd, advice) == (7, os.POSIX_FADV_WILLNEED)
        asked.append((SHIFT + offset, SHIFT + offset + length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return asked


def read(reads: ReadAhead, offset: int, size: int) -> None:
    reads.note(7, offset - SHIFT, offset, size)


def test_random_reads_fetch_nothing(fetched: list[tuple[int, int]]) -> None:
    rng, reads = random.Random(1), ReadAhead()
    for block in rng.sample(range(1000), 300):
        read(reads, SHIFT + block * MIB, BLOCK)
    assert fetched == []


@pytest.mark.parametrize("size", [BLOCK, 128 << 10, MIB])
def test_whoever_reads_on_finds_it_fetched_and_nothing_is_fetched_twice(
    size: int, fetched: list[tuple[int, int]]
) -> None:
    reads = ReadAhead()
    for number in range(100):
        at = SHIFT + number * size
        if number > 1:
            assert fetched[0][0] <= at
            assert fetched[-1][1] >= at + size
        read(reads, at, size)
        assert not fetched or fetched[-1][1] <= at + size + 8 * MIB
    assert all(end == start for (_, end), (start, _) in pairwise(fetched))
    assert len(fetched) <= 16 + 100 * size // MIB
