"""One small, wrong change; where it is tried, and how the tests judge it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

UNUSED: Final = ("cacheprovider", "schemathesis", "hypothesispytest")
PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-rfE"),
    *(word for plugin in UNUSED for word in ("-p", f"no:{plugin}")),
)
LIMIT: Final = 300.0
"""Seconds that the tests of one change may take: a wrong change can make them wait."""
BASELINE_LIMIT: Final = 1200.0
"""Seconds that the tests of all changes may take on the unchanged code."""
LEAVE: Final = 15.0
"""Seconds in which pytest, once interrupted, may stop its servers; `.ci/run` gives us 20 after its SIGTERM."""
COPIED: Final = ("taskflux", "handlers", "tests", "benchmarks", "charts", "docs", "k8s", "pyproject.toml")


class DoesNotApply(Exception):
    """The code no longer holds what a change replaces: the list has to follow the code."""


class Stopped(Exception):
    """All runs were stopped; the result of the change is unknown."""


class Verdict(StrEnum):
    """What became of a change."""

    NOTICED = "noticed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    """The tests did not run, or fail without the change too: they have not noticed anything."""


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


@dataclass(frozen=True, slots=True)
class Run:
    """What pytest answered: its exit code, None if it was not done in time, and what it printed."""

    code: int | None
    printed: str

    @property
    def failed(self) -> list[str]:
        """The tests that failed; one whose fixtures could not be set up did not run."""
        summary = self.printed.rpartition(" short test summary info ")[2]
        never_ran = set(re.findall(r"^_+ ERROR at setup of (.*?) _+$", self.printed, re.MULTILINE))
        return [
            str(test)
            for outcome, test in re.findall(r"^(FAILED|ERROR) (.+?)(?: - .*)?$", summary, re.MULTILINE)
            if outcome == "FAILED" or test.partition("::")[2].replace("::", ".") not in never_ran
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on a change, the reason for it (the test, if one noticed it), and what pytest printed."""

    verdict: Verdict
    reason: str
    printed: str


class Copy:
    """A copy of the repository whose code the tests import, in place of what is installed.

    Args:
        root: the top of the copy.
        stop: once set, whatever runs is interrupted and nothing new begins.
    """

    def __init__(self, root: Path, stop: threading.Event | None = None) -> None:
        self.root = root
        self._stop = stop or threading.Event()

    @classmethod
    def of(cls, source: Path, target: Path, stop: threading.Event) -> Copy:
        """Copy `source`, the top of the repository, to `target`."""
        for name in COPIED:
            if (source / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "node_modules")
                shutil.copytree(source / name, target / name, ignore=ignored)
            else:
                shutil.copy2(source / name, target / name)
        # An editable install would lead from taskflux.handlers to the original.
        (target / "taskflux" / "handlers").symlink_to(target / "handlers")
        return cls(target, stop)

    def try_out(self, mutation: Mutation) -> Outcome:
        """Whether a test fails with `mutation`: `confirmed` asks whether it passes without.

        Raises:
            DoesNotApply: the code has changed since the mutation was written.
            Stopped: the copy was stopped.
        """
        with self._changed(mutation):
            run = self.run(mutation.tests)
        if run.code == 0:
            return Outcome(Verdict.SURVIVED, "no test failed", run.printed)
        if run.code is None:
            return Outcome(Verdict.BROKEN, "not done in time", run.printed)
        if run.code != 1 or not run.failed:
            return Outcome(Verdict.BROKEN, "the tests did not run", run.printed)
        return Outcome(Verdict.NOTICED, run.failed[0], run.printed)

    def confirmed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """`outcomes`, those of a test that fails without the change too as BROKEN; all these tests run at once.

        Raises:
            Stopped: the copy was stopped.
        """
        tests = tuple(dict.fromkeys(each.reason for each in outcomes if each.verdict is Verdict.NOTICED))
        if not tests:
            return list(outcomes)
        again = self.run((*tests, "--maxfail=0"), BASELINE_LIMIT)
        failed = again.failed if again.code == 1 else [] if again.code == 0 else tests
        return [
            Outcome(Verdict.BROKEN, f"without the change too, a failure of {each.reason}", again.printed)
            if each.verdict is Verdict.NOTICED and each.reason in failed
            else each
            for each in outcomes
        ]

    def run(self, tests: tuple[str, ...], limit: float = LIMIT) -> Run:
        """What pytest says of `tests`, if it is done within `limit` seconds.

        Raises:
            Stopped: the copy was stopped.
        """
        if self._stop.is_set():
            raise Stopped
        # No bytecode: a file changed twice within a second would be taken for the same.
        environment = os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        until = time.monotonic() + limit
        # To a file: what a server that outlives pytest holds open would be waited for.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
            process = subprocess.Popen(
                [*PYTEST, *tests],
                cwd=self.root,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = self._ended(process, until)
            finally:
                _end(process)
            printed.seek(0)
            return Run(code, printed.read())

    def _ended(self, process: subprocess.Popen[bytes], until: float) -> int | None:
        while time.monotonic() < until:
            if self._stop.is_set():
                raise Stopped
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
        return None

    @contextmanager
    def _changed(self, mutation: Mutation) -> Iterator[None]:
        path = self.root / mutation.path
        original = path.read_text(encoding="utf-8")
        path.write_text(mutation.changed(original), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End pytest, if it still runs, and all that it has started and left behind."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
