"""What is on a volume once the kernel's own idea of it is out of the way: seen in a snapshot, or mounted again."""

from __future__ import annotations

from tests.e2e.harness import Volume


def test_a_file_opened_with_o_trunc_is_cut_on_the_volume_too(volume: Volume) -> None:
    cases = [(before, after) for before in (0, 100, 3000, 300_000) for after in (b"", b"short")]
    inside = volume.path / ".fusevol" / "snapshots"
    for before, after in cases:
        path = volume.path / f"{before}-{len(after)}"
        path.write_bytes(b"x" * before)
        volume.command("snapshot", "long")
        path.write_bytes(after)
        assert path.stat().st_size == len(after)
        volume.command("snapshot", "cut")
        assert (inside / "long" / path.name).read_bytes() == b"x" * before
        assert (inside / "cut" / path.name).read_bytes() == after
        volume.command("delete-snapshot", "long")
        volume.command("delete-snapshot", "cut")
    volume.umount()
    volume.check()
    volume.mount()
    for before, after in cases:
        assert (volume.path / f"{before}-{len(after)}").read_bytes() == after
