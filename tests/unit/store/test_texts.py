from __future__ import annotations

import asyncio
import json
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest

from taskflux.store.texts import DEEPEST, LONGEST_JSON, MOST_VALUES, json_text, storable


@pytest.mark.parametrize(
    ("text", "kept"),
    [("plain ä 🙂", "plain ä 🙂"), ("a\x00b", "a\ufffdb"), ("a\ud800b", "a?b"), ("", "")],
    ids=["plain", "NUL", "surrogate", "empty"],
)
def test_only_what_postgresql_refuses_is_replaced(text: str, kept: str) -> None:
    assert storable(text) == kept


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


class Text(str):
    """One that answers wrongly."""

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError("not this way")

    def __str__(self) -> str:
        raise RuntimeError("nor this way")


class Pairs(dict[str, int]):
    """One whose own methods are not asked."""

    def items(self) -> Any:
        raise RuntimeError("not this way")


class Broken:
    """An object that cannot say what it is."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


class Endless(Mapping[str, int]):
    """A mapping of which only the beginning can be read: `good` pairs."""

    def __init__(self, good: float, error: BaseException | None = None) -> None:
        self.good, self.error = good, error

    def __getitem__(self, key: str) -> int:
        if int(key) >= self.good and self.error is not None:
            raise self.error
        return int(key)

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield str(number)
            number += 1

    def __len__(self) -> int:
        return 0


class Meta(type):
    """A class of classes that answer nothing."""

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class Nameless(metaclass=Meta):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "{}"),
        ({"a": [1, None, "x", True, 1.5]}, '{"a": [1, null, "x", true, 1.5]}'),
        ({"id": UUID(int=1)}, '{"id": "00000000-0000-0000-0000-000000000001"}'),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, '{"at": "2026-01-01 00:00:00+00:00"}'),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), '{"a": {"b": 1}}'),
        ({("a", "b"): 1, "c": 2, 3: 3, None: 4, True: 5, 0.5: 6, Colour.RED: 7, Word.YES: 8}, None),
        ({"price": Decimal("1.50"), "who": {1}, "raw": b"\x00\xff", "as": (1, 2), "at": Point(1, 2)}, None),
        ({"colour": Colour.RED, "level": Level.HIGH, "word": Word.YES}, None),
        (OrderedDict(a=Pairs(b=1)), '{"a": {"b": 1}}'),
        ({"text": Text("as it is"), Text("key"): 1}, '{"text": "as it is", "key": 1}'),
        ({"nul": "\x00\ud800"}, r'{"nul": "\u0000\ud800"}'),
    ],
)
def test_any_document_becomes_json(document: dict[str, object], text: str | None) -> None:
    said = json_text(document)
    assert said == text if text else json.loads(said or "") == EXPECTED[len(document)]


EXPECTED: dict[int, dict[str, Any]] = {
    8: {"('a', 'b')": 1, "c": 2, "3": 3, "null": 4, "true": 5, "0.5": 6, "Colour.RED": 7, "yes": 8},
    5: {"price": "1.50", "who": "{1}", "raw": "b'\\x00\\xff'", "as": [1, 2], "at": [1, 2]},
    3: {"colour": "Colour.RED", "level": 3, "word": "yes"},
}


FOREIGN: dict[str, tuple[object, object]] = {
    "NaN": (math.nan, "NaN"),
    "Infinity": (math.inf, "Infinity"),
    "-Infinity": (-math.inf, "-Infinity"),
    "too many digits": (10**5000, "(an integer of 16610 bits)"),
    "text that raises": (Broken(RuntimeError("x")), "(its text cannot be read: RuntimeError)"),
    "text that exits": (Broken(SystemExit(3)), "(its text cannot be read: SystemExit)"),
    "text that is cancelled": (Broken(asyncio.CancelledError()), "(its text cannot be read: CancelledError)"),
    "text that ends its generator": (Broken(GeneratorExit()), "(its text cannot be read: GeneratorExit)"),
    "text that interrupts": ([Broken(KeyboardInterrupt())], ["(its text cannot be read: KeyboardInterrupt)"]),
    "a mapping that breaks": (Endless(2, LookupError("x")), {"0": 0, "1": 1, "…": "(cannot be read: LookupError)"}),
    "a key that breaks": ({Broken(RuntimeError("x")): 1}, {"(its text cannot be read: RuntimeError)": 1}),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("where", ["alone", "in a list", "in a mapping"])
def test_only_values_that_json_cannot_hold_are_replaced(name: str, where: str) -> None:
    value, kept = FOREIGN[name]
    wrapped = {"alone": value, "in a list": [1, value, 2], "in a mapping": {"x": value, "y": 2}}[where]
    expected = {"alone": kept, "in a list": [1, kept, 2], "in a mapping": {"x": kept, "y": 2}}[where]
    said = json_text({"rows": 12, "value": wrapped, "last": "z"})
    assert json.loads(said or "") == {"rows": 12, "value": expected, "last": "z"}


def test_only_an_object_of_a_broken_class_is_replaced() -> None:
    document = json.loads(json_text({"rows": 12, "value": Nameless()}) or "")
    assert document["rows"] == 12
    assert isinstance(document["value"], str)


def test_a_document_that_contains_itself_is_cut_at_the_repetition() -> None:
    circle: dict[str, object] = {"rows": 12}
    circle["again"] = [circle]
    twice = {"a": 1}
    circle["twice"] = [twice, twice]
    assert json.loads(json_text(circle) or "") == {
        "rows": 12,
        "again": ["(left out: it holds itself)"],
        "twice": [{"a": 1}, {"a": 1}],
    }


@pytest.mark.parametrize("levels", [40, 400, 10_000])
def test_values_nested_too_deeply_are_left_out(levels: int) -> None:
    deep: Any = {"rows": 12}
    for _ in range(levels):
        deep = {"in": [deep]}
    said = json_text({"rows": 12, "deep": deep})
    assert said is not None
    assert json.loads(said)["rows"] == 12
    assert said.count("[") + said.count("{") == DEEPEST
    assert f"(left out: below {DEEPEST} levels)" in said


ENORMOUS: dict[str, Callable[[], object]] = {
    "a text": lambda: "x" * 10_000_000,
    "texts": lambda: ["x" * 1000] * 200_000,
    "numbers": lambda: list(range(200_000)),
    "bytes": lambda: b"x" * 10_000_000,
    "a mapping without an end": lambda: Endless(math.inf),
    "a set": lambda: set(range(200_000)),
    "pairs": lambda: {str(n): n for n in range(200_000)},
    "a key": lambda: {"x" * 10_000_000: 1},
}


@pytest.mark.parametrize("name", ENORMOUS)
def test_a_huge_document_is_kept_in_part(name: str) -> None:
    for document in ({"rows": 12, "value": ENORMOUS[name]()}, {"rows": 12, "x" * 10_000_000: ENORMOUS[name]()}):
        said = json_text(document)
        assert said is not None
        assert json.loads(said)["rows"] == 12
        assert len(said) < 2 * LONGEST_JSON + 10 * MOST_VALUES


def test_a_value_that_is_not_a_mapping_has_no_json() -> None:
    for document in (5, "text", [1], None, object(), Nameless(), Broken(RuntimeError("x"))):
        assert json_text(document) is None


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(1)])
def test_a_mapping_that_cannot_be_read_says_so(error: BaseException) -> None:
    assert json_text(Endless(0, error)) == json.dumps({"…": f"(cannot be read: {type(error).__name__})"})
