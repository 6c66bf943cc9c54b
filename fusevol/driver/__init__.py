"""Volume drivers: what may be done to volumes.

`local.LocalDriver` has the volumes of one state directory. Below it: `context` (a volume held for one operation),
`snapshots`, `mounting`, `deleting`, `upkeep` (usage, checks, space), `attachment` (who has it mounted, and whether
that is still so), `mounts` (what the kernel says) and `control` (driving a mounted volume). Parts of LocalDriver
itself: `rawbytes`, `statistics`, `together`. `installed` has the drivers that packages bring along, this one among
them.
"""

from fusevol.driver.installed import configured_registry, driver_registry
from fusevol.driver.local import LocalDriver

__all__ = ["LocalDriver", "configured_registry", "driver_registry"]
