"""Programs that tests run and that TaskFlux does not include: a browser, and what clients are written in.

A test is skipped where its program is missing. `TASKFLUX_TEST_PROGRAMS` lists those that must not be: CI sets it to
what it installs.
"""

from __future__ import annotations

import os
import shutil

import pytest


def program(*names: str, package: str) -> str:
    """The first of these commands that is on the PATH; else the test is skipped, or fails where `names[0]` is listed.

    `package` is Debian's.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    why = f"{names[0]} is missing (on Debian: apt-get install {package})"
    if names[0] in os.environ.get("TASKFLUX_TEST_PROGRAMS", "").split():
        pytest.fail(why, pytrace=False)
    pytest.skip(why)
