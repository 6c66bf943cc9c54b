"""The backend on a block device or partition, or a file in its place, without a file system.

disk        the device: reading, writing, locking
layout      what is where on it: the first block, its copy, and the regions
tablefile   SQLite's file and journal in their regions
tables      SQLite's transactions, which threads share
freeblocks  the table of what is free
catalog     the tables of volumes and their extents, and what is known of them in memory
extents     where the blocks of one volume are
space       free blocks that are held for writes
writer      what is about to change in one volume
backend     DeviceBackend, which puts them together
"""

from fusevol.backends.device.backend import DeviceBackend

__all__ = ["DeviceBackend"]
