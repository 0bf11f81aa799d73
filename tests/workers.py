"""How pytest-xdist shares the tests between its workers: what stays together in one, and what begins first.

A scheduler of our own groups the tests by their paths: xdist's mark for it has no effect with
pytest 9.2 (https://github.com/pytest-dev/pytest-xdist/issues/1386).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

SYSTEM, CLI = "tests/integration/system/", "tests/integration/cli/"

OUTAGES = ("test_clock_steps", "test_own_handler", "test_provider", "test_store_outages")

TOGETHER = (
    # The stack of these two is that of their package, which one worker may build once only: they are neighbours here,
    # so that a worker that takes both takes one right after the other.
    ("system-outages", tuple(SYSTEM + name for name in OUTAGES)),
    ("system", (SYSTEM,)),
    ("tracing", ("tests/integration/tracing/",)),
    (
        "cli",
        tuple(CLI + name for name in ("test_bare_pod", "test_doctor", "test_keys", "test_reload", "test_termination")),
    ),
    ("chart-runs", ("tests/chart/test_runs.py",)),
    ("servers", ("tests/integration/local/test_servers.py",)),
    ("clients", ("tests/integration/http/test_documented_clients.py",)),
    ("pages", ("tests/integration/local/test_pages.py",)),
)
"""Groups of tests that share what is dear to start, with the beginnings of their ids; longest first."""


def group_of(test: str) -> str:
    """Under which name a test, known by its id, is handed to a worker: with its group, with its module, or alone."""
    for name, beginnings in TOGETHER:
        if test.startswith(beginnings):
            return name
    return test if _needs_servers(test) else test.partition("::")[0]


def begin_with_the_longest(items: list[pytest.Item]) -> None:
    """Put the groups first, then what needs servers: small tests at the end fill what is left of each worker's time."""
    groups = [name for name, _ in TOGETHER]

    def rank(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        if group in groups:
            return groups.index(group)
        return len(groups) + (not _needs_servers(group))

    items.sort(key=rank)


def built_by_one_worker(group: str, directories: pytest.TempPathFactory) -> None:
    """Fail where another worker has built what this group shares: else nothing tells that they are not together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The parent is that of all the workers' directories of this run.
        (directories.getbasetemp().parent / f"built-for-{group}").mkdir()


def _needs_servers(test: str) -> bool:
    return test.startswith("tests/integration/")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole groups, in the order of their first tests."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # it would begin with the group of the most tests

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
