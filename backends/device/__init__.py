"""DeviceBackend: volumes on one block device or partition, or in a file in its place, without a file system."""

from fusevol.backends.device.backend import DeviceBackend

__all__ = ["DeviceBackend"]
