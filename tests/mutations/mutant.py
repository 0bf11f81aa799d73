"""One small, wrong change; where it is tried, and what the tests say of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

UNUSED: Final = ("cacheprovider", "schemathesis", "hypothesispytest")
PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=short"),
    *(word for plugin in UNUSED for word in ("-p", f"no:{plugin}")),
)
LIMIT: Final = 300.0
"""Seconds that the tests of one change may take: a wrong change can make them wait."""
COPIED: Final = ("taskflux", "handlers", "tests", "benchmarks", "charts", "docs", "k8s", "pyproject.toml")


class DoesNotApply(Exception):
    """The code no longer holds what a change replaces: the list has to follow the code."""


class Verdict(StrEnum):
    """What became of a change."""

    NOTICED = "noticed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    """The tests did not run at all, so they have not noticed anything."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change that must not pass.

    Args:
        wrong: what the changed program does wrong.
        path: the file, from the top of the repository.
        old: text that stands exactly once in it.
        new: what stands there instead.
        tests: what pytest is given; at least one of these tests must fail.
    """

    wrong: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]

    def changed(self, text: str) -> str:
        """`text`, the file's, with the change.

        Raises:
            DoesNotApply: what it replaces is not there, or more than once.
        """
        if (found := text.count(self.old)) != 1:
            raise DoesNotApply(f"{self.path} holds what it replaces {found} times, not once")
        return text.replace(self.old, self.new)


class Copy:
    """A copy of the repository whose code the tests import, in place of what is installed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, source: Path, target: Path) -> Copy:
        """Copy `source`, the top of the repository, to `target`."""
        for name in COPIED:
            if (source / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "node_modules")
                shutil.copytree(source / name, target / name, ignore=ignored)
            else:
                shutil.copy2(source / name, target / name)
        # An editable install would lead from taskflux.handlers to the original.
        (target / "taskflux" / "handlers").symlink_to(target / "handlers")
        return cls(target)

    def try_out(self, mutation: Mutation) -> tuple[Verdict, str]:
        """Whether `mutation` is noticed, and what pytest printed.

        Raises:
            DoesNotApply: the code has changed since the mutation was written.
        """
        with self._changed(mutation):
            code, printed = self.run(mutation.tests)
        verdict = {0: Verdict.SURVIVED, 1: Verdict.NOTICED}.get(code, Verdict.BROKEN)
        return verdict, printed

    def run(self, tests: tuple[str, ...]) -> tuple[int, str]:
        """Pytest's exit code (1: a test has failed) and what it printed."""
        # No bytecode: a file changed twice within a second would be taken for the same.
        environment = os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*PYTEST, *tests]
        try:
            done = subprocess.run(
                command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return -1, f"not done after {LIMIT:g} s"
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def _changed(self, mutation: Mutation) -> Iterator[None]:
        path = self.root / mutation.path
        original = path.read_text(encoding="utf-8")
        path.write_text(mutation.changed(original), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")
