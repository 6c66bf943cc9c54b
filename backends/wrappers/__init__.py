"""Wrappers: backends over a backend, each adding one thing. They stack in any order.

- `faults.FaultyBackend`: scripted and random failures
- `recording.RecordingBackend`: a journal of all calls, and the states a power cut could leave
- `counting.CountingBackend`: calls, bytes, errors, calls in flight
"""

__all__: list[str] = []
