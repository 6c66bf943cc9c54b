"""A log of a mount whose store does not answer stays small, and says that it does."""

import logging

from fusevol.mount.flood import Flood


def record(at: float, text: str = "write of 7: no answer", name: str = "fusevol.mount") -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, __file__, 1, "%s", (text,), None)
    made.created = at
    return made


def test_the_first_lines_are_written_and_the_next_one_after_a_while_says_how_many_were_not() -> None:
    flood = Flood(most=3, seconds=60)
    assert [flood.filter(record(second)) for second in range(10)] == [True] * 3 + [False] * 7
    later = record(60)
    assert flood.filter(later)
    assert later.getMessage() == "write of 7: no answer (7 like it before this were left out)"
    again = record(120)
    assert flood.filter(again)
    assert again.getMessage() == "write of 7: no answer"


def test_other_loggers_are_not_held_up_by_one_that_has_much_to_say() -> None:
    flood = Flood(most=1)
    assert flood.filter(record(0))
    assert not flood.filter(record(0))
    assert flood.filter(record(0, name="fusevol.process"))
