"""Bodies that are unpacked while they are read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest

from taskflux.providers.answers import Body
from tests.memory import traced_peak

MOST = 1000


def gathered(coding: str | None, *chunks: bytes) -> bytes:
    body = Body(coding, MOST)
    for chunk in chunks:
        if not body.add(chunk):
            break
    return body.whole()


@pytest.mark.parametrize("coding", [None, "", "identity", "Identity "])
def test_a_plain_body_is_read_up_to_the_limit(coding: str | None) -> None:
    assert gathered(coding, b"a" * 400, b"b" * 600) == b"a" * 400 + b"b" * 600


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP"])
def test_a_packed_body_is_unpacked_in_whatever_pieces_it_comes(coding: str) -> None:
    packed = gzip.compress(b"said" * 250)
    assert gathered(coding, packed) == b"said" * 250
    assert gathered(coding, *(packed[at : at + 1] for at in range(len(packed)))) == b"said" * 250


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, b"a" * (MOST + 1)),
        ("gzip", gzip.compress(b"a" * (MOST + 1))),
        ("gzip", b"not packed"),
        ("deflate", zlib.compress(b"a")),
        ("gzip, gzip", gzip.compress(gzip.compress(b"a"))),
        ("br", b"a"),
    ],
    ids=["plain", "packed", "not packed", "deflate", "packed twice", "brotli"],
)
def test_a_body_that_is_too_large_or_cannot_be_unpacked_is_empty(coding: str | None, body: bytes) -> None:
    assert gathered(coding, body) == b""
    assert gathered(coding, body[:3], body[3:]) == b""


@pytest.mark.parametrize(
    "make",
    [lambda: gzip.compress(bytes(20_000_000), 9), lambda: gzip.compress(b"a") + bytes(200_000)],
    ids=["a bomb", "with a tail"],
)
def test_a_bomb_takes_no_more_memory_than_is_allowed(make: Callable[[], bytes]) -> None:
    packed = make()
    chunks = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
    with traced_peak() as peak:
        gathered("gzip", *chunks)
    assert peak.bytes < 100_000
