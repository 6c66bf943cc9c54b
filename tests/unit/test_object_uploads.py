"""Uploads over a line on which too many at once take longer than the client waits, or that breaks."""

import pytest
import trio
from trio.testing import MockClock

from fusevol.backends.object.uploads import Uploads
from fusevol.errors import BackendError


class Line:
    """Carries so many at once within the client's patience of 30 seconds."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.under_way = self.most = self.failed = 0

    async def upload(self) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            crowded = self.under_way > self.width
            await trio.sleep(30 if crowded else 8 * self.under_way)
            if crowded:
                self.failed += 1
                raise BackendError("timed out")
        finally:
            self.under_way -= 1


@pytest.mark.parametrize("width", [1, 2, 3])
async def test_on_a_slow_line_all_get_there_once_there_are_fewer_at_once(width: int, autojump_clock: MockClock) -> None:
    line, uploads = Line(width), Uploads()
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(uploads.persist, line.upload)
    assert line.most == 4
    assert line.failed < 60


async def test_where_nothing_fails_they_are_not_held_back(autojump_clock: MockClock) -> None:
    line, uploads = Line(8), Uploads()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(uploads.persist, line.upload)
    assert (line.most, line.failed) == (8, 0)


async def test_a_line_that_broke_once_is_tried_again_after_a_moment(autojump_clock: MockClock) -> None:
    uploads, tried = Uploads(), []

    async def upload() -> None:
        tried.append(trio.current_time())
        if len(tried) == 1:
            raise BackendError("connection reset by peer")

    await uploads.persist(upload)
    assert len(tried) == 2
    assert tried[1] - tried[0] < 1


async def test_a_store_that_stays_away_is_told_of_in_the_end(autojump_clock: MockClock) -> None:
    uploads = Uploads()
    tried: list[float] = []

    async def upload() -> None:
        tried.append(trio.current_time())
        raise BackendError("connection refused")

    with pytest.raises(BackendError, match="refused"):
        await uploads.persist(upload)
    assert len(tried) == 5
