"""The constants of openstorage's `volume` package, with the seed's values.

They are what programs written for openstorage look for. fusevol keeps its own state elsewhere (`--home`,
`$FUSEVOL_HOME`); only `PLUGIN_API_BASE` is a place where others must find it.
"""

from typing import Final, NewType

__all__ = [
    "API_VERSION",
    "ATTACH_OPTIONS_SECRET",
    "DRIVER_API_BASE",
    "LOCAL_NODE",
    "LOCATION_CONSTRAINT",
    "MOUNT_BASE",
    "PLUGIN_API_BASE",
    "VOLUME_BASE",
    "AttachOptionsKey",
]

#: Version of the volume management interface (APIVersion).
API_VERSION: Final = "v1"

#: Directory in which Docker looks for the unix sockets of plugins (PluginAPIBase).
PLUGIN_API_BASE: Final = "/run/docker/plugins/"

#: Directory of openstorage's own driver sockets (DriverAPIBase).
DRIVER_API_BASE: Final = "/var/lib/osd/driver/"

#: Directory under which openstorage mounts volumes (MountBase).
MOUNT_BASE: Final = "/var/lib/osd/mounts/"

#: Directory of openstorage's state (VolumeBase).
VOLUME_BASE: Final = "/var/lib/osd/"

#: Label of a volume whose value says where its data must be (LocationConstraint).
LOCATION_CONSTRAINT: Final = "LocationConstraint"

#: The value of that label that stands for the node which reads it, as localhost does (LocalNode).
LOCAL_NODE: Final = "LocalNode"

#: A key among the options of `BlockDriver.attach` (AttachOptionsKey).
AttachOptionsKey = NewType("AttachOptionsKey", str)

#: The attach option that carries an encrypted volume's passphrase (AttachOptionsSecret).
ATTACH_OPTIONS_SECRET: Final = AttachOptionsKey("SECRET_KEY")
