"""What can be tuned in a log-structured volume. The defaults are for a disk of today."""

from dataclasses import dataclass

__all__ = ["LogOptions"]


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Bounds on memory, recovery time and slack.

    in_flight: batches (of up to 8 MiB) on their way to the backend before writers wait.
    checkpoint_bytes: log behind a checkpoint after which the next barrier starts another one.
    slack_bytes: dead space that is kept back, to be given up in longer runs; at least an eighth of the live data is.
    cached_nodes: map nodes (16 KiB each) kept in memory, besides those changed since the last checkpoint.
    dirty_leaves: changed leaves (16 KiB each) after which the next barrier starts a checkpoint.
    reserve_bytes: what is left of a store, or a sixteenth of it if that is less, when files are no longer to grow.
    idle_seconds: after this long without a write, a mark bears witness that the last flush was complete.
    settle_seconds: after this long without a write, dead space beyond the slack is given back without more of them.
    """

    in_flight: int = 4
    checkpoint_bytes: int = 512 << 20
    slack_bytes: int = 64 << 20
    cached_nodes: int = 2048
    dirty_leaves: int = 8192
    reserve_bytes: int = 32 << 20
    idle_seconds: float = 0.05
    settle_seconds: float = 5.0
