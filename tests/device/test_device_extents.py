"""What is known of a volume's extents is what a dictionary of its blocks would know."""

from hypothesis import given
from hypothesis import strategies as st

from fusevol.backends.device.extents import WINDOW, Known

SPAN = 3 * WINDOW

RANGES = st.tuples(
    st.sampled_from([0, WINDOW - 40, WINDOW, 2 * WINDOW - 10]).flatmap(lambda at: st.integers(at, at + 60)),
    st.integers(1, 50),
)
Change = tuple[tuple[int, int], bool, int]
CHANGES = st.lists(st.tuples(RANGES, st.booleans(), st.integers(1, 3)), max_size=30)


@given(CHANGES, st.lists(RANGES, max_size=5))
def test_pieces_are_what_was_put_there(changes: list[Change], asked: list[tuple[int, int]]) -> None:
    known, model, address = Known("v", 1), dict[int, int](), 1000
    for window in range(3):
        known.keep(window, [])
    for (start, count), there, parts in changes:
        extents, at = [], start
        if there:
            for part in range(parts):
                length = count // parts if part < parts - 1 else start + count - at
                if length:
                    extents.append((at, length, address))
                    at, address = at + length, address + length + 7
        known.replace(start, count, extents)
        for block in range(start, start + count):
            model.pop(block, None)
        model |= {first + i: where + i for first, length, where in extents for i in range(length)}
    for start, count in [*asked, (0, SPAN)]:
        pieces = known.pieces(start, count)
        assert pieces is not None
        at, found = start, dict[int, int]()
        for piece in pieces:
            assert piece[0] == at
            assert piece[1] > 0
            if len(piece) == 3:
                found |= {piece[0] + i: piece[2] + i for i in range(piece[1])}
            at += piece[1]
        assert at == start + count
        assert found == {block: where for block, where in model.items() if start <= block < start + count}


def test_what_was_never_asked_for_is_not_known() -> None:
    known = Known("v", 1)
    known.keep(0, [(5, 2, 100)])
    assert known.pieces(0, 8) == [(0, 5), (5, 2, 100), (7, 1)]
    assert known.pieces(WINDOW - 1, 2) is None
    assert known.missing(WINDOW - 1, 2) == [1]
    known.forget()
    assert known.pieces(0, 8) is None
