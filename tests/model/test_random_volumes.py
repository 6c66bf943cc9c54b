"""Volumes that have everything done to them at random are always what a dictionary of blocks would be."""

import random

import pytest

from fusevol.backends.memory import MemoryBackend
from fusevol.testing.determinism import Dawdling, GoingOn, run
from fusevol.testing.small import small_batches
from fusevol.testing.workload import Workload


@pytest.mark.parametrize("seed", range(22))
def test_a_random_life_of_volumes_agrees_with_the_model(seed: int) -> None:
    async def live() -> None:
        backend = MemoryBackend() if seed % 3 == 0 else GoingOn(Dawdling(MemoryBackend(), seed), seed)
        workload = Workload(backend, seed)
        with small_batches(random.Random(seed).choice((6, 40, 2032))):
            await workload.run(200)

    run(live, seed=seed)
