"""fusevol: log-structured volumes with instant snapshots, clones and restore on dumb backends."""

__version__ = "0.1.0"
