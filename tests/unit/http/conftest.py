from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.http.memory import Fixture


@pytest.fixture
async def http() -> AsyncIterator[Fixture]:
    fixture = Fixture()
    yield fixture
    await fixture.client.aclose()
