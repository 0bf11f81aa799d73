"""What can be wrong with a page."""

from __future__ import annotations


class Failed(Exception):
    """A command of a page did not do what the page says; the text says which, and what was printed."""
