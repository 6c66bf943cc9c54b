"""Many processes doing everything with the same few volumes at once break nothing and leave nothing."""

import pytest
import trio

from tests.e2e.crowd import crowd, look
from tests.e2e.harness import Bench, seed


@pytest.mark.limit(400)
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_crowd_on_ten_volumes_fails_with_named_errors_only_and_leaves_true_records(
    bench: Bench, seconds: int
) -> None:
    tally = crowd(bench, 8, seconds, seed())
    assert tally.problems == []
    assert sum(outcomes.get("done", 0) for outcomes in tally.outcomes.values()) > 0
    assert trio.run(look, bench) == []
