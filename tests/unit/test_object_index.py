"""Which objects hold which bytes: also where objects overlap, as a crash in the middle of a rewrite leaves them."""

from hypothesis import given
from hypothesis import strategies as st

from fusevol.backends.object.index import Index, Stored

RANGES = st.tuples(st.integers(0, 30), st.integers(1, 12))


@given(objects=st.lists(RANGES, max_size=8), start=st.integers(0, 40), size=st.integers(0, 20))
def test_every_byte_of_a_range_is_in_one_part_or_in_a_hole(
    objects: list[tuple[int, int]], start: int, size: int
) -> None:
    index, stop = Index(), start + size
    for offset, length in objects:
        index.add(Stored(offset, length))
    parts, holes = index.cover(start, stop)
    for stored, low, high in parts:
        # An empty one would be a request that a store refuses.
        assert max(start, stored.offset) <= low < high <= min(stop, stored.end)
    runs = sorted([(low, high) for _, low, high in parts] + holes)
    assert all(low < high for low, high in runs)
    assert [byte for low, high in runs for byte in range(low, high)] == list(range(start, stop))
    stored_bytes = {byte for offset, length in objects for byte in range(offset, offset + length)}
    assert {byte for low, high in holes for byte in range(low, high)} == set(range(start, stop)) - stored_bytes
