from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.cli.scripted import Server, scripted_server


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as server:
        yield server
