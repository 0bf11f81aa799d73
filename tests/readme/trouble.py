"""What can be wrong with a README."""

from __future__ import annotations


class Failed(Exception):
    """A command of the README did not do what it says; the text says which, and what was printed."""
