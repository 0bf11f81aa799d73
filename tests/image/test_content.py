"""What is in the image, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.image.base import Base
from tests.image.building import revision
from tests.image.engine import Confinement, Engine
from tests.image.measures import Measures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BUDGET = 80_000_000
ROOT_INSIDE = Confinement(user="0:0", tmpfs={})
INSPECTION = Path(__file__).with_name("inspection.py")


@pytest.fixture(scope="module")
def found(engine: Engine, image: str) -> dict[str, Any]:
    """What the image's own Python says about it, confined as in a pod."""
    said = engine.output(image, "/inspection.py", entrypoint="python3", mounts={INSPECTION: "/inspection.py"})
    answer: dict[str, Any] = json.loads(said)
    return answer


def test_our_layers_are_at_most_80_mb_above_the_base(
    engine: Engine, image: str, base: Base, measures: Measures
) -> None:
    ours, bases = _about(engine, image), _about(engine, base.image)
    layers = bases["RootFS"]["Layers"]
    assert ours["RootFS"]["Layers"][: len(layers)] == layers
    above = ours["Size"] - bases["Size"]
    measures.say("layers above the base", f"{above / 1e6:.1f} MB of {BUDGET / 1e6:.0f} MB")
    assert 0 < above <= BUDGET


def test_what_is_imported_was_compiled_when_the_image_was_built(found: dict[str, Any]) -> None:
    assert found["imported"] > 300
    assert found["compiled_at_start"] == []


def test_every_module_of_ours_has_bytecode_that_no_modification_time_matters_to(found: dict[str, Any]) -> None:
    assert found["ours"] > 100
    assert found["ours_without_bytecode"] == []
    assert found["ours_checked"] == []


def test_tracebacks_name_the_files_that_are_there(found: dict[str, Any]) -> None:
    assert found["traceback_names"] == found["file"]


def test_the_home_is_the_one_place_that_can_be_written(found: dict[str, Any]) -> None:
    assert found["home"] == "/tmp"


def test_there_is_no_compiler_no_cache_and_no_secret(engine: Engine, image: str) -> None:
    search = r"""
        for program in cc c++ gcc g++ clang make ld as cargo; do command -v $program; done
        find / -xdev \( -path /proc -o -path /sys \) -prune -o \
            \( -path '*/.cache/*' -o -path '/build*' -o -name '*.whl' -not -path '*/ensurepip/*' \
            -o -path /etc/pip.conf -o -path '/run/secrets/*' -o -name '*.pyx' \) -print
        true
    """
    assert engine.output(image, "-c", search, entrypoint="sh", confinement=ROOT_INSIDE) == ""


def test_it_runs_as_a_user_by_number_and_names_the_command(engine: Engine, image: str) -> None:
    config = _about(engine, image)["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["taskflux"]
    assert not config.get("Cmd")


def test_its_labels_say_what_it_is_and_what_it_was_made_of(engine: Engine, image: str, base: Base) -> None:
    labels = _about(engine, image)["Config"]["Labels"]
    said = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert f"taskflux {said['version']}\n" == engine.output(image, "--version")
    assert said["revision"].removesuffix("-dirty") == revision()
    assert said["licenses"] == "MIT"
    assert said["base.name"] == base.image
    assert said["created"].endswith("Z")
    assert {"title", "description", "source"} <= said.keys()
    assert "@" not in said["source"], "an address with somebody's credentials"


def _about(engine: Engine, image: str) -> dict[str, Any]:
    (about,) = json.loads(engine.do("image", "inspect", image).stdout)
    found: dict[str, Any] = about
    return found
