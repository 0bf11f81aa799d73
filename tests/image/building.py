"""The image under test: built by `image/build`, as `make image` does, and again only when its inputs have changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.image import index
from tests.image.base import Base
from tests.image.engine import Engine

ROOT = Path(__file__).parents[2]
REPOSITORY = "localhost/taskflux-test"
BUILD_TIMEOUT = 900.0
KEPT = 4
FILES = (".dockerignore", "Dockerfile", "LICENSE", "README.md", "pyproject.toml")
REQUIREMENTS = ("base", "build", "reload")


def build(engine: Engine, base: Base, target: str = "production", root: Path = ROOT) -> str:
    """The name of the image of `target` as the sources below `root` make it.

    Raises:
        AssertionError: the build failed; the text is the end of what it said.
    """
    image = f"{REPOSITORY}-{target}:{fingerprint(root, base)}"
    with _alone():
        if image not in _images(engine, target):
            build_anew(engine, base, image, target, root=root)
        _forget_old(engine, target, image)
    return image


def build_anew(
    engine: Engine,
    base: Base,
    image: str,
    target: str = "production",
    *options: str,
    root: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Build it whatever there is.

    Args:
        options: the engine's.
        environment: for `image/build`; without one, how this machine reaches its package index.

    Raises:
        AssertionError: the build failed; the text is the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="taskflux-image-") as directory:
        whole = {
            **os.environ,
            "IMAGE": image,
            "BASE": base.image,
            "ENGINE": engine.name,
            **({} if target == "production" else {"TARGET": target}),
            **(index.secrets(Path(directory)) if environment is None else environment),
        }
        # The base is here: nothing is asked of a registry.
        never = ["--pull=never"] if engine.name == "podman" else []
        done = subprocess.run(
            [root / "image/build", *never, *options],
            env=whole,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    assert done.returncode == 0, f"image/build ended with {done.returncode}:\n{done.stdout[-3000:]}"


def snapshot(target: Path) -> None:
    """Copy what the image is made of, so that several builds are of the same sources."""
    for path in inputs():
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def inputs(root: Path = ROOT) -> Iterator[Path]:
    """Every file that the image is made of, and what makes it."""
    yield from (root / name for name in FILES)
    yield from (root / f"requirements/{name}.txt" for name in REQUIREMENTS)
    for directory in ("handlers", "taskflux", "image"):
        yield from sorted(
            path
            for path in (root / directory).rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".pyo") and "__pycache__" not in path.parts
        )


def fingerprint(root: Path, base: Base) -> str:
    """Another one for another image: of the base's name, the commit, which is in a label, and the inputs."""
    digest = hashlib.sha256(f"{base.image}\n{revision(root)}\n".encode())
    for path in inputs(root):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def revision(root: Path = ROOT) -> str:
    """The commit; empty where this is no repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@contextmanager
def _alone() -> Iterator[None]:
    """Two test runs do not build the same image at the same time."""
    with (Path(tempfile.gettempdir()) / f"taskflux-image-{os.geteuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _images(engine: Engine, target: str) -> Sequence[str]:
    """The images of `target`, newest first."""
    listed = engine.do("images", "--format", "{{.Repository}}:{{.Tag}}", f"{REPOSITORY}-{target}")
    return listed.stdout.split()


def _forget_old(engine: Engine, target: str, used: str) -> None:
    """Remove all but the last few. One that a container was made from is refused, and stays."""
    for image in [image for image in _images(engine, target) if image != used][KEPT:]:
        subprocess.run([engine.program, "rmi", image], capture_output=True, timeout=120, check=False)
