"""Contracts as test suites, for those who write backends or drivers. They need pytest and pytest-trio.

- `backends.BackendContract`: what every backend must do
- `store.StoreContract`: what every store of volume records must do
- `driver.DriverContract`: what every volume driver must do, on real mounts

And for the volumes themselves: `crash`, the crash oracle; `workload`, what random volumes live through; `model` and
`timeline`, what they must be; `determinism`, runs that go the same way every time; `small`, everything in small.
"""
