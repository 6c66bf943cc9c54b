"""Whenever the power is cut: nothing durable is lost, and nothing half-done is seen. `scripts/crash_soak` runs more."""

from collections.abc import Callable

import pytest

from fusevol.backends.encryption import EncryptedBackend, Key
from fusevol.testing.crash import Recorded, check_cut, record
from fusevol.testing.determinism import REPEATABLE
from tests.crash.controls import FlushesOnlyCheckpoints, NeverFlushes, discarding_early


@pytest.mark.parametrize("seed", range(22))
def test_after_any_power_cut_volumes_are_as_at_the_last_barrier_or_a_later_one(seed: int) -> None:
    recorded = record(seed)
    for number in range(17):
        check_cut(recorded, number)


@pytest.mark.parametrize("seed", range(100, 106))
def test_it_is_no_other_where_what_is_stored_is_encrypted(seed: int) -> None:
    recorded = record(seed, over=lambda store: EncryptedBackend(store, Key(bytes(32))))
    for number in range(17):
        check_cut(recorded, number)


def cuts_until_noticed(make: Callable[[int], Recorded], most: int) -> int:
    """How many cuts it takes the oracle to notice that something is wrong."""
    cuts = 0
    for seed in range(most // 10):
        recorded = make(seed)
        for number in range(10):
            cuts += 1
            try:
                check_cut(recorded, number)
            except AssertionError:
                return cuts
    raise AssertionError(f"nothing was noticed in {cuts} cuts")


def test_a_log_whose_flushes_never_reach_the_store_is_caught() -> None:
    assert cuts_until_noticed(lambda seed: record(seed, faults=NeverFlushes), most=30) <= 30


def test_a_log_that_flushes_its_checkpoints_but_not_its_barriers_is_caught() -> None:
    assert cuts_until_noticed(lambda seed: record(seed, faults=FlushesOnlyCheckpoints), most=150) <= 150


def test_a_log_that_gives_space_back_before_it_commits_is_caught() -> None:
    assert cuts_until_noticed(lambda seed: discarding_early(record(seed)), most=400) <= 400


@pytest.mark.skipif(not REPEATABLE, reason="this version of trio has no deterministic scheduler")
def test_a_seed_gives_the_same_journal_every_time() -> None:
    one, two = ([(what, call.kind, call.volume_id, call.offset) for what, call in record(5).journal] for _ in range(2))
    assert one == two
