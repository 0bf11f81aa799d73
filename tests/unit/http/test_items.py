"""The items of a batch: cut out of its body as it arrives, whatever the parts are."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from taskflux.http.items import ArraySplitter, Item, LineSplitter, MalformedBatch, Splitter


def split(splitter: Splitter, parts: list[bytes]) -> list[Item]:
    items = [item for part in parts for item in splitter.feed(part)]
    return items + list(splitter.end())


def array(body: bytes, size: int | None = None, longest: int = 1 << 20) -> list[Item]:
    size = size or max(len(body), 1)
    return split(ArraySplitter(longest), [body[at : at + size] for at in range(0, len(body), size)])


def lines(body: bytes, size: int | None = None, longest: int = 1 << 20) -> list[Item]:
    size = size or max(len(body), 1)
    return split(LineSplitter(longest), [body[at : at + size] for at in range(0, len(body), size)])


TRICKY: list[Any] = [
    {"a": '],[{}\\"', "b": ["\\", "\\\\", '"', {"c": [[], {}]}]},
    "a,b",
    '\\"],',
    "\\",
    [],
    {},
    [1, [2, [3]]],
    -1.5e10,
    None,
    True,
    "ü\u2028🎉\x7f",
    {'"': ","},
    {"\\": "]"},
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 4096])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_is_cut_at_its_outer_commas_alone(size: int, indent: int | None, ascii_only: bool) -> None:
    body = json.dumps(TRICKY, indent=indent, ensure_ascii=ascii_only).encode()
    assert [json.loads(item or b"") for item in array(body, size)] == TRICKY


@pytest.mark.parametrize("seed", range(30))
def test_any_document_in_any_parts_is_cut_as_it_was_put_together(seed: int) -> None:
    chance = random.Random(seed)

    def anything(depth: int = 0) -> Any:
        kind = chance.randrange(4 if depth > 3 else 6)
        if kind == 4:
            return [anything(depth + 1) for _ in range(chance.randrange(4))]
        if kind == 5:
            return {text(): anything(depth + 1) for _ in range(chance.randrange(4))}
        return [None, chance.random(), chance.randrange(10**9), text()][kind]

    def text() -> str:
        return "".join(chance.choice('\\\\\\""",,[]{}: \nabü') for _ in range(chance.randrange(12)))

    documents = [anything() for _ in range(chance.randrange(40))]
    body = json.dumps(documents, ensure_ascii=chance.random() < 0.5).encode()
    parts, at = [], 0
    while at < len(body):
        size = chance.randrange(1, 20)
        parts.append(body[at : at + size])
        at += size
    items = split(ArraySplitter(1 << 20), parts)
    assert [json.loads(item or b"") for item in items] == documents
    as_lines = b"\n".join(json.dumps(document).encode() for document in documents)
    size = chance.randrange(1, 50)
    assert [json.loads(item or b"") for item in lines(as_lines, size)] == documents


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b"\xef\xbb\xbf[\n]\n"])
def test_an_empty_array_has_no_items(body: bytes) -> None:
    assert array(body) == array(body, 1) == []


@pytest.mark.parametrize("size", [1, 100])
def test_a_bad_item_spoils_no_other(size: int) -> None:
    assert array(b'[1, tru, {"a" 5}, , 2,]', size) == [b"1", b" tru", b' {"a" 5}', b" ", b" 2", b""]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("body", "before"),
    [
        (b"", []),
        (b"  ", []),
        (b'{"a": 1}', []),
        (b"[", []),
        (b"[1, 2", [b"1"]),
        (b'[1, "a]', [b"1"]),
        (b'[1, "a\\"]', [b"1"]),
        (b"[1, [2]", [b"1"]),
        (b"[1, }, 2]", [b"1"]),
        (b"[1, 2] 3", [b"1", b" 2"]),
        (b"[1][2]", [b"1"]),
        (b"[1]]", [b"1"]),
    ],
)
def test_a_broken_array_gives_what_stood_before_the_break(body: bytes, before: list[bytes], size: int) -> None:
    splitter = ArraySplitter(100)
    found: list[Item] = []

    def cut() -> None:
        for at in range(0, len(body), size):
            found.extend(splitter.feed(body[at : at + size]))
        found.extend(splitter.end())

    with pytest.raises(MalformedBatch):
        cut()
    assert found == before


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_item_above_the_limit_is_named_and_not_kept(size: int) -> None:
    long = json.dumps({"x": "y" * 200}).encode()
    assert array(b"[1," + long + b",2," + long + b"]", size, longest=50) == [b"1", None, b"2", None]
    assert lines(b"1\n" + long + b"\n2\n" + long, size, longest=50) == [b"1", None, b"2", None]


@pytest.mark.parametrize("splitter", [ArraySplitter(100), LineSplitter(100)])
def test_an_endless_item_takes_no_memory(splitter: Any) -> None:
    list(splitter.feed(b'["'))
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 1000)) == []
    assert len(splitter._item._parts) <= 100


@pytest.mark.parametrize("size", [1, 2, 100])
def test_blank_lines_are_not_items_and_the_last_needs_no_line_feed(size: int) -> None:
    assert lines(b'\n{"a":1}\r\n\n  \n{"b":2}', size) == [b'{"a":1}\r', b'{"b":2}']
    assert lines(b"", size) == lines(b"\n\n", size) == []


def test_a_byte_order_mark_alone_is_not_a_line() -> None:
    assert lines(b"\xef\xbb\xbf\n1\n") == [b"1"]
    assert lines(b"\xef\xbb\xbf") == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_an_array_in_utf_16_is_refused_as_such(encoding: str) -> None:
    with pytest.raises(MalformedBatch, match="the body is UTF-16"):
        array("[1, 2]".encode(encoding))
