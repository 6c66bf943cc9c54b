"""The backend in a directory of a local file system; the embedded default.

manifest_file  the manifest of a volume, replaced under a lock
segment_file   one file of a volume's space, opened twice: around the page cache, and through it
segments       a volume's space, in files
backend        FileBackend, which puts them together
"""

from fusevol.backends.file.backend import FileBackend

__all__ = ["FileBackend"]
