"""How the tests are shared between workers."""

from __future__ import annotations

import pytest

from tests.workers import TOGETHER, group_of

SYSTEM = "tests/integration/system"


@pytest.mark.parametrize(
    ("test", "group"),
    [
        (f"{SYSTEM}/test_drain.py::test_a", "system"),
        (f"{SYSTEM}/test_store_outages.py::test_a[killed]", "system-outages"),
        ("tests/integration/tracing/test_trees.py::test_a", "tracing"),
        (
            "tests/integration/store/test_claims.py::test_a[x::y]",
            "tests/integration/store/test_claims.py::test_a[x::y]",
        ),
        ("tests/unit/tasks/test_decision.py::test_a[x::y]", "tests/unit/tasks/test_decision.py"),
    ],
)
def test_a_test_stays_with_its_group_or_alone_where_it_takes_long_and_else_with_its_module(
    test: str, group: str
) -> None:
    assert group_of(test) == group


def test_every_group_has_tests(request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath
    for name, beginnings in TOGETHER:
        for beginning in beginnings:
            assert list(root.glob(f"{beginning}*")), (name, beginning)
