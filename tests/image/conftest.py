"""The engine, the base and the images, once for the session; what was measured is said at the end."""

from __future__ import annotations

import pytest

from tests.image.base import Base, find_base
from tests.image.building import build
from tests.image.engine import Engine, find_engine
from tests.image.measures import Measures
from tests.image.unavailable import Unavailable

_MEASURES = pytest.StashKey[Measures]()


@pytest.fixture(scope="session")
def engine() -> Engine:
    try:
        return find_engine()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def base(engine: Engine, measures: Measures) -> Base:
    try:
        base = find_base(engine.program)
    except Unavailable as reason:
        pytest.skip(str(reason))
    measures.say("engine", engine.name)
    measures.say("base", base.what)
    return base


@pytest.fixture(scope="session")
def image(engine: Engine, base: Base) -> str:
    """The production image."""
    return build(engine, base)


@pytest.fixture(scope="session")
def dev_image(engine: Engine, base: Base, image: str) -> str:
    """The image of the `dev` stage; after the other, whose steps it shares."""
    return build(engine, base, "dev")


@pytest.fixture(scope="session")
def measures(pytestconfig: pytest.Config) -> Measures:
    """What a test found out that a person wants to know."""
    return pytestconfig.stash.setdefault(_MEASURES, Measures())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_MEASURES, Measures()).lines():
        terminalreporter.write_line(line)
