"""A CPython 3.12 of this machine that can be carried into a root file system of the same Debian."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = "3.12"
QUESTION = "import json, platform, sys; print(json.dumps([sys.base_prefix, platform.python_version()]))"
# As in the official image: no tests, no bytecode (docker-library/python#615), no packages but pip.
LEFT_OUT = ("test", "tests", "idle_test", "__pycache__", "site-packages", "_tkinter*.so", "*.pyc", "libpython*.a")


@dataclass(frozen=True, slots=True)
class CPython:
    """A prefix that Debian's packages have no part in, and its exact version."""

    prefix: Path
    version: str

    def packages(self) -> list[str]:
        """Debian's packages with the libraries that it is linked to."""
        return sorted({package for library in self._libraries() for package in _owners(library)})

    def copy_to(self, root: Path) -> None:
        """Lay it under `root`/usr/local, with pip, as the official image has it."""
        target = root / "usr/local"
        for part in (f"bin/python{VERSION}", *self._shared_libraries()):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.prefix / part, target / part)
        shutil.copytree(
            self.prefix / f"lib/python{VERSION}",
            target / f"lib/python{VERSION}",
            symlinks=True,
            ignore=shutil.ignore_patterns(*LEFT_OUT),
        )
        (target / f"lib/python{VERSION}/site-packages").mkdir()
        for name in ("python", "python3"):
            (target / "bin" / name).symlink_to(f"python{VERSION}")
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        for command in (
            ["ldconfig"],
            ["python3", "-m", "ensurepip", "--default-pip"],
        ):
            # As argv of chroot, so that PATH is looked up inside.
            subprocess.run(["chroot", root, *command], env=environment, check=True, capture_output=True, timeout=120)
        for compiled in target.rglob("*.pyc"):
            compiled.unlink()

    def _shared_libraries(self) -> list[str]:
        return [f"lib/{path.name}" for path in sorted((self.prefix / "lib").glob("libpython3*.so*"))]

    def _libraries(self) -> set[str]:
        """The shared libraries outside the prefix, of the program and of each extension module."""
        modules = (self.prefix / f"lib/python{VERSION}/lib-dynload").glob("*.so")
        files = [self.prefix / f"bin/python{VERSION}", *(path for path in modules if "tkinter" not in path.name)]
        said = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False, timeout=60).stdout
        return {path for path in re.findall(r"=> (/\S+)", said) if not path.startswith(str(self.prefix))}


def find_cpython() -> CPython | None:
    """The first CPython 3.12 here that is not Debian's own."""
    for program in _candidates():
        try:
            said = subprocess.run([program, "-c", QUESTION], capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            continue
        prefix, version = json.loads(said.stdout)
        # One under /usr belongs to Debian's packages, and its files are all over the place.
        if version.startswith(f"{VERSION}.") and prefix != "/usr":
            return CPython(Path(prefix), version)
    return None


def _candidates() -> Iterator[Path]:
    if found := shutil.which(f"python{VERSION}"):
        yield Path(found)
    home = Path.home()
    for versions, pattern in (
        (Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions", f"{VERSION}.*"),
        (home / ".local/share/uv/python", f"cpython-{VERSION}.*"),
        (Path("/opt/hostedtoolcache/Python"), f"{VERSION}.*/x64"),
    ):
        for prefix in sorted(versions.glob(pattern), reverse=True):
            yield prefix / f"bin/python{VERSION}"


def _owners(library: str) -> list[str]:
    """Debian's packages that hold a library; none for what no package holds."""
    # Debian may name a library under /lib or under /usr/lib, which are one: look for the end of the path.
    end = library.removeprefix("/usr")
    said = subprocess.run(["dpkg", "-S", f"*{end}"], capture_output=True, text=True, check=False, timeout=60).stdout
    names = [line.partition(": ")[0] for line in said.splitlines() if line.endswith(end) and "diversion" not in line]
    return [name.partition(":")[0] for group in names for name in group.split(", ")]
