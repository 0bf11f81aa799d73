"""Why no image can be built here."""

from __future__ import annotations


class Unavailable(Exception):
    """What containers need is not on this machine; the text says what, and how to get it."""
