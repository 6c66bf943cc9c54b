"""The backend in an object store: every write is one immutable object.

client   requests to a store, and their retries
errors   what a store says went wrong, in words
index    which objects hold which bytes
uploads  uploads that are under way
volume   what is known of one volume
backend  ObjectBackend, which puts them together
"""

from fusevol.backends.object.backend import ObjectBackend

__all__ = ["ObjectBackend"]
