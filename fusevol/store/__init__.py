"""Where volume records and locks are kept.

`sqlite.SqliteStore` is the embedded store, in the state directory of one host. `fusevol.testing.store` is what
every store must do.
"""

from fusevol.store.processes import Life, Process, this_node
from fusevol.store.sqlite import SqliteStore

__all__ = ["Life", "Process", "SqliteStore", "this_node"]
