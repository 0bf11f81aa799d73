"""TaskFlux's own image, from the Dockerfile, as an archive that the node loads."""

from __future__ import annotations

import subprocess

from taskflux.local.console import Trouble
from tests.e2e.cluster.machine.place import Place
from tests.image.base import find_base
from tests.image.building import build
from tests.image.engine import find_engine

SAVE_TIMEOUT = 300.0


def image(place: Place) -> str:
    """Its name, built where the sources have changed.

    Raises:
        Unavailable: there is no engine, or no base; the text says which.
        Trouble: it cannot be built or saved.
    """
    engine = find_engine()
    try:
        name = build(engine, find_base(engine.program))
    except AssertionError as error:
        raise Trouble(str(error)) from error
    place.directory.mkdir(mode=0o755, exist_ok=True)
    file = place.directory / "taskflux.tar"
    noted = file.with_suffix(".name")
    if not (file.exists() and noted.exists() and noted.read_text() == name):
        file.unlink(missing_ok=True)
        command = [engine.program, "save", "--output", str(file), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SAVE_TIMEOUT, check=False)
        if done.returncode != 0:
            raise Trouble(f"the image could not be saved: {done.stderr[-1000:]}")
        noted.write_text(name)
    return name
