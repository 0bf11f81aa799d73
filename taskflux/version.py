"""The version of this program, as installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("taskflux")
except PackageNotFoundError:  # run from a source tree that nobody installed
    VERSION = "0+source"
