"""The log-structured volume: batches, extent map, checkpoints, snapshots."""
