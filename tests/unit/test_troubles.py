"""What is wrong with a mount is in its volume's record, for as long as it is."""

import pytest

from fusevol.errors import BackendError
from fusevol.mount.settings import Outside
from fusevol.mount.troubles import Troubles


class Record(Outside):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.writable = True

    async def note(self, failure: str) -> None:
        if not self.writable:
            raise BackendError("the disk is full")
        self.notes.append(failure)


async def test_all_that_is_wrong_is_said_in_one_line_and_only_when_it_changes() -> None:
    record = Record()
    troubles = Troubles(record, "6f0a", "web")
    await troubles.note("volume", "")
    assert record.notes == []
    for _ in range(3):
        await troubles.note("volume", 'volume "6f0a" cannot grow')
    await troubles.note("schedule", "no snapshot")
    await troubles.note("volume", "")
    await troubles.note("schedule", "")
    assert record.notes == [
        'volume "web" cannot grow', 'no snapshot; volume "web" cannot grow', "no snapshot", "",
    ]  # fmt: skip


async def test_what_could_not_be_written_down_is_with_the_next_note(caplog: pytest.LogCaptureFixture) -> None:
    record = Record()
    troubles = Troubles(record, "6f0a", "web")
    record.writable = False
    await troubles.note("volume", "its disk is full")
    await troubles.note("volume", "its disk is full")
    assert record.notes == []
    assert caplog.text.count("its disk is full") == 1
    record.writable = True
    await troubles.note("volume", "its disk is full")
    assert record.notes == ["its disk is full"]


async def test_the_directory_that_has_the_volumes_id_keeps_its_name() -> None:
    record = Record()
    await Troubles(record, "6f0a", "web").note("volume", "/pool/6f0a/manifest of 6f0a is away")
    assert record.notes == ["/pool/6f0a/manifest of web is away"]
