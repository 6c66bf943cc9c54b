"""Sizes, read and written."""

import pytest

from fusevol.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("4096B", 4096), ("1K", 1024), ("1KiB", 1024), ("1kb", 1024), ("512MiB", 512 << 20),
        ("10G", 10 << 30), ("1.5G", 3 << 29), ("2T", 2 << 40), ("1P", 1 << 50), ("1E", 1 << 60), (" 1M ", 1 << 20),
    ],
)  # fmt: skip
def test_sizes_are_read_in_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "10X", "-1", "+1", "1,5G", "1 G", "1.G", "0x10", "1e3", "1.0001K", "0.5", "8E", "inf", "\u0661G"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole number|more than"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (10 << 30, "10 GiB"),
        ((1 << 20) - 1, "1 MiB"), (1 << 40, "1 TiB"), (2**63, "8 EiB"),
    ],
)  # fmt: skip
def test_sizes_are_written_in_binary_units(size: int, text: str) -> None:
    assert format_size(size) == text
