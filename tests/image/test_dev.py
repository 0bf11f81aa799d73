"""The `dev` stage: sources that file sync can replace, as the user that runs."""

from __future__ import annotations

import pytest

from tests.image.engine import Confinement, Engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WRITABLE = Confinement(read_only=False)
VERSION = "taskflux/version.py"


def test_a_source_that_was_replaced_is_the_one_that_runs(engine: Engine, dev_image: str) -> None:
    # As skaffold does it: an archive, unpacked by the container's own tar, in the container's working directory.
    replace = f"""
        mkdir -p /tmp/new/taskflux/worker
        echo 'VERSION = "replaced"' >/tmp/new/{VERSION}
        tar -C /tmp/new -cf - {VERSION} | tar --no-same-owner -xmf -
        taskflux --version
        rm {VERSION}
        ! taskflux --version 2>/dev/null
    """
    said = engine.output(dev_image, "-euc", replace, entrypoint="sh", confinement=WRITABLE)
    assert said == "taskflux replaced\n"


def test_its_sources_have_no_bytecode_and_changes_can_be_watched(engine: Engine, dev_image: str) -> None:
    look = "import taskflux.handlers, watchfiles; print(taskflux.handlers.__file__)"
    found = engine.output(dev_image, "-c", look, entrypoint="python", confinement=WRITABLE)
    assert found == "/app/taskflux/handlers/__init__.py\n"
    compiled = engine.output(dev_image, "/app", "-name", "*.pyc", entrypoint="find", confinement=WRITABLE)
    assert compiled == ""


def test_production_has_neither(engine: Engine, image: str) -> None:
    assert engine.output(image, "/app", "-mindepth", "1", entrypoint="find") == ""
    look = "import importlib.util as util; print(util.find_spec('watchfiles'))"
    assert engine.output(image, "-c", look, entrypoint="python") == "None\n"
