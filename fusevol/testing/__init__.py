"""Contracts as test suites, for those who write backends or drivers. They need pytest and pytest-trio.

- `backends.BackendContract`: what every backend must do
- `store.StoreContract`: what every store of volume records must do
"""
