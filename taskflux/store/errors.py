"""What may go wrong with the store, by what the caller does next.

::

    StoreError
    ├── StoreUnavailable   wait and try again: nothing was (surely) changed
    ├── StoreBusy          try again at once: a deadlock, a statement that took too long
    ├── RefusedData        this row will never be taken
    └── SchemaTooOld       run `taskflux migrate`
"""

from __future__ import annotations


class StoreError(Exception):
    """PostgreSQL did not do what was asked."""


class StoreUnavailable(StoreError):
    """PostgreSQL cannot be reached, or the connection was lost in the middle."""


class StoreBusy(StoreError):
    """The statement was given up and may be run again as it is."""


class RefusedData(StoreError):
    """A value does not fit its column."""


class SchemaTooOld(StoreError):
    """A table or column is missing."""
