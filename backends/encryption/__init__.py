"""Encryption at rest: what a store is given to keep says nothing of what is in it.

keys       the file that a pool's key is in, and the keys that are derived from it for each volume
ciphers    bytes of a space, and manifests, into what is stored and back
encrypted  EncryptedBackend, the backend that puts them before another one
"""

from fusevol.backends.encryption.encrypted import EncryptedBackend
from fusevol.backends.encryption.keys import Key, make_key_file, read_key_file

__all__ = ["EncryptedBackend", "Key", "make_key_file", "read_key_file"]
