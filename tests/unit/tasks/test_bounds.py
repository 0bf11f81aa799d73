"""Depth and values of a JSON text are known before anything is built of it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from taskflux.tasks.bounds import (
    MAX_DEPTH,
    MAX_VALUES,
    MOST_BYTES,
    USUAL_BYTES,
    OutOfBounds,
    TooManyValues,
    check,
    check_characters,
    excess,
)


def test_the_bounds_are_those_that_the_api_names() -> None:
    assert (MAX_DEPTH, MAX_VALUES, USUAL_BYTES, MOST_BYTES) == (64, 100_000, 1_048_576, 16_777_216)


def values_of(document: Any) -> int:
    inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return 1 + sum(map(values_of, inner))


@pytest.mark.parametrize("seed", range(20))
def test_values_are_counted_exactly_whatever_strings_contain(seed: int) -> None:
    chance = random.Random(seed)

    def text() -> str:
        return "".join(chance.choice('\\\\""",[]{}: \n[],ü🎉') for _ in range(chance.randrange(30)))

    def anything(depth: int = 0) -> Any:
        kind = chance.randrange(6) if depth < 8 else chance.randrange(3)
        if kind == 3:
            return [anything(depth + 1) for _ in range(chance.randrange(9))]
        if kind >= 4:
            return {text(): anything(depth + 1) for _ in range(chance.randrange(9))}
        return [None, chance.random(), text()][kind]

    document = [anything(6) for _ in range(1200)]  # fewer are only estimated
    for indent in (None, 2):
        assert check(json.dumps(document, indent=indent).encode()) == values_of(document)


@pytest.mark.parametrize(
    "unit",
    [b"[]", b"{}", b"0", b'""', b'"a,b"', b"[ ]", b"{\n}", b"null", b'"\\"[],"', b'"\\\\"'],
    ids=lambda unit: unit.decode(),
)
def test_a_text_may_hold_the_maximum_of_values_and_no_more(unit: bytes) -> None:
    most = b"[" + b",".join([unit] * (MAX_VALUES - 1)) + b"]"
    assert check(most) == MAX_VALUES
    with pytest.raises(TooManyValues, match="more than 100,000 values"):
        check(most[:-1] + b"," + unit + b"]")


def test_names_are_not_counted_as_values() -> None:
    document = {f"name {number}": number for number in range(MAX_VALUES - 1)}
    assert check(json.dumps(document).encode()) == MAX_VALUES
    with pytest.raises(TooManyValues):
        check(json.dumps({**document, "one more": 1}).encode())


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"]":', b"}]")])
def test_a_text_may_be_nested_to_the_maximum_depth_and_no_deeper(opening: bytes, closing: bytes) -> None:
    times = MAX_DEPTH // (opening.count(b"[") + opening.count(b"{"))
    assert check(opening * times + b"1" + closing * times)
    with pytest.raises(OutOfBounds, match="nested more than 64 deep"):
        check(opening * times + b"[1]" + closing * times)
    with pytest.raises(OutOfBounds):
        check(b"[" * 100)
    assert check(b"[" + b",".join([b"[1]"] * 1000) + b"]") == 2001


def test_brackets_and_quotes_in_strings_do_not_count_as_nesting() -> None:
    assert check(json.dumps(["[" * 5000, '\\"[' * 5000, {"{" * 5000: "}"}]).encode()) == 5


@pytest.mark.parametrize(
    "text",
    [b"", b'"', b'"[[', b"]" * 100_000, b"\\" * 99, b'[["\\', b"[" * 90 + b"]" * 1_000_000, b"{" * 70_000, b",,,"],
    ids=lambda text: text[:9].decode(),
)
def test_invalid_json_is_left_to_the_parser_or_refused(text: bytes) -> None:
    try:
        check(text)
    except OutOfBounds:
        assert text.startswith((b"[", b"{"))


@pytest.mark.parametrize(
    "text",
    ['"\\ud800"', '"\\uDC00"', '"\\ud83d\\ud83d\\ude00"', '{"\\udfff": 1}', '["\\ude00\\ud83d"]', '"\\ud83d \\ude00"'],
)
def test_a_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(OutOfBounds, match="lone surrogate"):
        check_characters(text.encode(), json.loads(text))


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud800"', '"\\u00e9\\uD83D\\uDE00x"', '"\\ud7ff"'])
def test_a_surrogate_pair_is_accepted(text: str) -> None:
    check_characters(text.encode(), json.loads(text))


def test_the_error_of_a_payload_that_is_too_large_says_how_large_it_is() -> None:
    assert "1,001 bytes" in excess(1001, 1000)
