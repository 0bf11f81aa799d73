"""Where a build may take packages from, and that it ends the same wherever that is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image import index
from tests.image.base import Base
from tests.image.building import REPOSITORY, build_anew, snapshot
from tests.image.engine import Confinement, Engine
from tests.image.private_index import CREDENTIALS, serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EPOCH = {"SOURCE_DATE_EPOCH": "946684800"}
MADE = "2000-01-01T00:00:00"
"""What is left of these builds is known by it."""

IN_A_BASE = {"PIP_CONF": "/etc/pip.conf", "CA": "/etc/ssl/certs/ca-certificates.crt"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state of the sources, for all builds here."""
    directory = tmp_path_factory.mktemp("sources")
    snapshot(directory)
    return directory


@pytest.fixture(scope="module", autouse=True)
def _no_leftovers(engine: Engine) -> Iterator[None]:
    """The stages of a build without cache are of no use to the next one."""
    before = set(_untagged(engine))
    yield
    for image in _untagged(engine):
        if image not in before and _about(engine, image)["Created"].startswith(MADE):
            engine.do("rmi", image)


@pytest.fixture(scope="module")
def without_secrets(engine: Engine, base: Base, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The layers of an image built without secrets, on a base that knows how packages are reached from here."""
    directory = tmp_path_factory.mktemp("base")
    recipe = [f"FROM {base.image}"]
    for secret, file in index.secrets(directory).items():
        (directory / secret).write_bytes(Path(file).read_bytes())
        recipe.append(f"COPY {secret} {IN_A_BASE[secret]}")
    (directory / "Dockerfile").write_text("\n".join(recipe))
    knowing = f"{REPOSITORY}-knowing-base:latest"
    engine.do("build", "--tag", knowing, str(directory))
    return _layers(engine, Base(knowing, base.what), f"{REPOSITORY}-without-secrets:latest", sources, {})


def test_a_private_index_behind_a_private_ca_gives_the_same_layers(
    engine: Engine, base: Base, sources: Path, without_secrets: list[str], tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    _download(engine, base, sources, wheels)
    image = f"{REPOSITORY}-private-index:latest"
    with serve(wheels, tmp_path) as private:
        pip_conf = tmp_path / "pip.conf"
        pip_conf.write_text(f"[global]\nindex-url = {private.url}\n")
        environment = {"PIP_CONF": str(pip_conf), "CA": str(private.ca)}
        layers = _layers(engine, base, image, sources, environment)
    fetched = {path for path in private.served if path.endswith(".whl")}
    assert len(fetched) == len(list(wheels.iterdir()))
    assert layers == without_secrets
    assert CREDENTIALS not in engine.do("history", "--no-trunc", image).stdout
    left = engine.output(image, "-c", "cat /etc/pip.conf; true", entrypoint="sh", confinement=Confinement(user="0:0"))
    assert left == ""


def _layers(engine: Engine, base: Base, image: str, sources: Path, environment: dict[str, str]) -> list[str]:
    """Build without any cache; the digests of what is above the base."""
    build_anew(engine, base, image, "production", "--no-cache", root=sources, environment={**EPOCH, **environment})
    of_base, of_image = (_about(engine, each)["RootFS"]["Layers"] for each in (base.image, image))
    assert of_image[: len(of_base)] == of_base
    layers: list[str] = of_image[len(of_base) :]
    return layers


def _about(engine: Engine, image: str) -> dict[str, Any]:
    (about,) = json.loads(engine.do("image", "inspect", image).stdout)
    found: dict[str, Any] = about
    return found


def _untagged(engine: Engine) -> list[str]:
    return engine.do("images", "--quiet", "--no-trunc", "--filter", "dangling=true").stdout.split()


def _download(engine: Engine, base: Base, sources: Path, wheels: Path) -> None:
    """The wheels that the locks name, for the base's Python."""
    version = engine.output(
        base.image, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", entrypoint="python3"
    ).strip()
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"),
            *("--only-binary", ":all:", "--python-version", version, "--dest", wheels),
            *("-r", sources / "requirements/base.txt", "-r", sources / "requirements/build.txt"),
        ],
        check=True,
        timeout=300,
    )
