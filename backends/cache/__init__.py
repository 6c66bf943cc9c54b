"""Remote stores made fit for mounting: a cache on a local disk, and reads that need no loop.

slots     blocks in a local file, by space and address
aside     reads of a store from a thread that has a loop of its own
local     LocalCache, the backend that puts the two before another one
"""

from fusevol.backends.cache.local import LocalCache

__all__ = ["LocalCache"]
