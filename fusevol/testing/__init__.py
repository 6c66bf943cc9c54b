"""Contracts as test suites, for those who write backends or drivers. They need pytest and pytest-trio.

- `backends.BackendContract`: what every backend must do
"""
