from __future__ import annotations

import json
from datetime import UTC, datetime
from types import MappingProxyType
from uuid import UUID

import pytest

from taskflux.store.database import json_text, storable


@pytest.mark.parametrize(
    ("text", "kept"),
    [("plain ä 🙂", "plain ä 🙂"), ("a\x00b", "a\ufffdb"), ("a\ud800b", "a?b"), ("", "")],
    ids=["plain", "NUL", "surrogate", "empty"],
)
def test_only_what_postgresql_refuses_is_replaced(text: str, kept: str) -> None:
    assert storable(text) == kept


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"a": [1, None, "x"]}, '{"a": [1, null, "x"]}'),
        ({"id": UUID(int=1)}, '{"id": "00000000-0000-0000-0000-000000000001"}'),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, '{"at": "2026-01-01 00:00:00+00:00"}'),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), '{"a": {"b": 1}}'),
        ({("a", "b"): 1, "c": 2}, '{"c": 2}'),
    ],
    ids=["plain", "an id", "a date", "views", "a key that is no text"],
)
def test_a_document_becomes_json_whatever_stands_in_it(document: dict[str, object], text: str) -> None:
    assert json_text(document) == text


def test_what_json_cannot_bear_is_kept_as_bounded_text() -> None:
    circle: dict[str, object] = {"x": "y" * 10_000}
    circle["again"] = circle
    assert len(json.loads(json_text(circle))["unreadable"]) == 1000
    assert "nan" in json.loads(json_text({"price": float("nan")}))["unreadable"]
