"""Everything in small, so that a few blocks see what otherwise takes gigabytes."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from fusevol.log import LogOptions

__all__ = ["random_options", "small_batches"]


def random_options(choose: random.Random) -> LogOptions:
    """Options so small that checkpoints, evictions and reclaim go on all the time."""
    return LogOptions(
        in_flight=choose.randint(1, 4),
        checkpoint_bytes=choose.choice((64, 256, 512)) << 10,
        slack_bytes=choose.choice((0, 16, 64)) << 10,
        cached_nodes=choose.choice((4, 8, 64)),
        dirty_leaves=choose.randint(2, 8),
    )


@contextmanager
def small_batches(blocks: int) -> Iterator[None]:
    """Let data batches be full after so many blocks, so that small volumes have many between two barriers."""
    with mock.patch("fusevol.log.batch.BATCH_BLOCKS", blocks), mock.patch("fusevol.log.batch.BATCH_OPS", 2 * blocks):
        yield
