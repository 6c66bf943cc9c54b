"""What is on a volume once the kernel's own idea of it is out of the way: seen in a snapshot, or mounted again."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Volume


@pytest.mark.parametrize("before", [0, 100, 3000, 300_000])
@pytest.mark.parametrize("after", [b"", b"short"])
def test_a_file_opened_with_o_trunc_is_cut_on_the_volume_too(volume: Volume, before: int, after: bytes) -> None:
    path = volume.path / "file"
    path.write_bytes(b"x" * before)
    volume.command("snapshot", "long")
    path.write_bytes(after)
    assert path.stat().st_size == len(after)
    volume.command("snapshot", "cut")
    inside = volume.path / ".fusevol" / "snapshots"
    assert (inside / "long" / "file").read_bytes() == b"x" * before
    assert (inside / "cut" / "file").read_bytes() == after
    volume.umount()
    volume.mount()
    assert path.read_bytes() == after
