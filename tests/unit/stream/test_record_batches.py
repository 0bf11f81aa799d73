"""What is left of a broker's answer before aiokafka unpacks it. Batches are built as aiokafka builds and reads them."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
import pytest
from aiokafka.codec import snappy_encode
from aiokafka.errors import CorruptRecordException
from aiokafka.record import MemoryRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from taskflux.stream.record_batches import readable, suspect, why_unreadable
from tests.memory import traced_peak

LIMIT = 1_000_000
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
CODECS = [GZIP, SNAPPY, LZ4, ZSTD]
TIME = 1_700_000_000_000
PACKERS: dict[int, Callable[[bytes], bytes]] = {
    GZIP: gzip.compress,
    SNAPPY: lambda data: bytes(cramjam.snappy.compress_raw(data)),
    LZ4: lambda data: bytes(cramjam.lz4.compress(data)),
    ZSTD: lambda data: bytes(cramjam.zstd.compress(data)),
}


def batch(codec: int, *values: bytes, base: int = 40, headers: Any = ()) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    for offset, value in enumerate(values):
        builder.append(offset, TIME, b"k", value, list(headers))
    return struct.pack(">q", base) + bytes(builder.build())[8:]


def legacy(magic: int, codec: int, *values: bytes) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 30)
    for offset, value in enumerate(values):
        builder.append(offset, TIME, b"k", value)
    return bytes(builder.build())


def patched(whole: bytes, at: int, replacement: bytes) -> bytes:
    """The batch with other bytes there, and its checksum set right again."""
    changed = bytearray(whole)
    changed[at : at + len(replacement)] = replacement
    changed[17:21] = struct.pack(">I", calc_crc32c(bytes(changed[21:])))
    return bytes(changed)


def with_records(codec: int, packed: bytes) -> bytes:
    """A batch of one record whose packed part is exactly this."""
    header = bytearray(batch(0, b"")[:61])
    header[8:12] = struct.pack(">i", 49 + len(packed))
    header[21:23] = struct.pack(">h", codec)
    return patched(bytes(header) + packed, 0, b"")


def read(answer: bytes) -> Iterator[Any]:
    """As the consumer reads it."""
    records = MemoryRecords(answer)
    while records.has_next():
        found = records.next_batch()
        assert found.validate_crc()
        if not found.is_control_batch:
            yield from found


def one_unreadable(answer: bytes) -> Any:
    (record,) = read(answer)
    assert why_unreadable(tuple(record.headers))
    return record


@pytest.mark.parametrize("codec", [0, *CODECS])
@pytest.mark.parametrize("closely", [False, True])
def test_readable_batches_are_not_changed(codec: int, closely: bool) -> None:
    answer = batch(codec, b"a" * 100, b"b") + batch(0, b"c", base=50) + batch(codec, b"d", base=60)
    assert suspect(answer) == bool(codec)
    left, unpacked = readable(answer, LIMIT, LIMIT, closely=closely)
    assert left == answer
    assert [record.offset for record in read(left)] == [40, 41, 50, 60]
    assert (unpacked > 0) == bool(codec)
    assert not any(why_unreadable(tuple(record.headers)) for record in read(left))


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, GZIP, SNAPPY])
def test_messages_of_the_old_formats_are_not_changed(magic: int, codec: int) -> None:
    answer = legacy(magic, codec, b"a" * 100, b"b")
    left, unpacked = readable(answer, LIMIT, LIMIT, closely=True)
    assert left == answer
    assert (unpacked > 100) == bool(codec)


@pytest.mark.parametrize(
    "bomb",
    [
        *(batch(codec, bytes(LIMIT // 3), bytes(LIMIT // 3), bytes(LIMIT // 3)) for codec in CODECS),
        *(legacy(1, codec, bytes(LIMIT)) for codec in (GZIP, SNAPPY, LZ4)),
        legacy(0, GZIP, bytes(LIMIT)),
        with_records(GZIP, gzip.compress(bytes(LIMIT // 2)) * 3),
        with_records(LZ4, bytes(cramjam.lz4.compress(bytes(LIMIT // 2))) * 3),
        with_records(ZSTD, bytes(cramjam.zstd.compress(bytes(LIMIT // 2))) * 3),
        with_records(SNAPPY, bytes(cramjam.snappy.compress_raw(bytes(LIMIT + 1)))),
        with_records(SNAPPY, snappy_encode(bytes(LIMIT + 1))),
    ],
)
def test_a_batch_that_unpacks_to_more_than_the_limit_is_one_record_with_its_bytes(bomb: bytes) -> None:
    answer = bomb + batch(0, b"next", base=500)
    left, unpacked = readable(answer, LIMIT, LIMIT, closely=False)
    broken, following = read(left)
    assert (broken.key, broken.value) == (None, bomb)
    assert "1,000,000 bytes" in why_unreadable(tuple(broken.headers))
    assert (following.offset, following.value) == (500, b"next")
    assert unpacked == 0


def test_a_batch_of_exactly_the_limit_is_accepted() -> None:
    for codec in CODECS:
        answer = batch(codec, bytes(LIMIT - 100))
        left, unpacked = readable(answer, LIMIT, LIMIT, closely=False)
        assert left == answer
        assert LIMIT - 100 < unpacked <= LIMIT


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_is_not_unpacked_beyond_the_limit(codec: int) -> None:
    bomb = with_records(codec, PACKERS[codec](bytes(50_000_000)))
    with traced_peak() as peak:
        readable(bomb, LIMIT, LIMIT, closely=False)
    assert peak.bytes < 20_000_000


@pytest.mark.parametrize("number", [5, 6, 7])
def test_a_batch_in_an_unknown_codec_keeps_its_bytes_and_its_place(number: int) -> None:
    unknown = patched(batch(0, b"a", b"b", b"c"), 21, struct.pack(">h", number))
    record = one_unreadable(readable(unknown, LIMIT, LIMIT, closely=False)[0])
    assert record.value == unknown
    assert (record.offset, record.timestamp) == (42, TIME)  # the last of the batch: what is committed is behind it
    assert f"codec {number}" in why_unreadable(tuple(record.headers))


def test_a_batch_of_an_unknown_format_keeps_its_bytes() -> None:
    for magic in (3, 128, 255):
        unknown = patched(batch(0, b"a"), 16, bytes([magic]))
        assert suspect(unknown)
        record = one_unreadable(readable(unknown, LIMIT, LIMIT, closely=False)[0])
        assert (record.value, record.offset) == (unknown, 40)


@pytest.mark.parametrize(
    "packed",
    [
        (GZIP, b"no gzip"),
        (GZIP, gzip.compress(b"x" * 1000)[:-9]),
        (GZIP, gzip.compress(b"x") + b"behind it"),
        (GZIP, b""),
        (SNAPPY, b""),
        (SNAPPY, b"\xff" * 20),
        (SNAPPY, b"\x0a\x00"),
        (SNAPPY, b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xfc\x00"),  # a block of -4 bytes
        (SNAPPY, b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00"),
        (LZ4, b"no lz4"),
        (ZSTD, b"no zstd"),
        (ZSTD, bytes(cramjam.zstd.compress(b"x" * 1000))[:-3]),
        (ZSTD, b""),
    ],
)
def test_a_batch_that_cannot_be_unpacked_keeps_its_bytes(packed: tuple[int, bytes]) -> None:
    broken = with_records(*packed)
    assert one_unreadable(readable(broken, LIMIT, LIMIT, closely=True)[0]).value == broken


def test_a_header_whose_name_is_not_utf_8_does_not_affect_other_records() -> None:
    for codec in (0, *CODECS):
        unpacked = batch(0, b"one", b"two", headers=[("broken", b"1"), ("whole", None)])
        records = unpacked[61:].replace(b"broken", b"\xff\xfe\xfd\xfc\xfb\xfa", 1)
        packed = PACKERS[codec](records) if codec else records
        answer = bytearray(with_records(codec, packed))
        answer[23:27], answer[57:61] = struct.pack(">i", 3), struct.pack(">i", 2)  # a record was compacted away
        first, second = read(readable(patched(bytes(answer), 0, b""), LIMIT, LIMIT, closely=True)[0])
        assert (first.offset, first.timestamp, first.key, first.value) == (40, TIME, b"k", b"one")
        assert first.headers[:2] == [("\\xff\\xfe\\xfd\\xfc\\xfb\\xfa", b"1"), ("whole", None)]
        assert "UTF-8" in why_unreadable(tuple(first.headers))
        assert (second.offset, second.value, second.headers) == (41, b"two", [("broken", b"1"), ("whole", None)])


def test_a_repaired_batch_keeps_its_last_offset() -> None:
    answer = patched(batch(0, b"one", b"two", headers=[("broken", b"1")]), 23, struct.pack(">i", 9))
    answer = patched(answer, answer.index(b"broken"), b"\xff" * 6)
    left, _ = readable(answer, LIMIT, LIMIT, closely=True)
    assert MemoryRecords(left).next_batch().next_offset == 50


@pytest.mark.parametrize("codec", [0, *CODECS])
@pytest.mark.parametrize("count", [2, 1, 0, -1])
def test_a_batch_whose_header_counts_fewer_records_than_it_holds_keeps_its_bytes(codec: int, count: int) -> None:
    broken = patched(batch(codec, b"one", b"two", b"three"), 57, struct.pack(">i", count))
    with pytest.raises(CorruptRecordException):  # what makes the consumer look closely
        list(read(broken))
    record = one_unreadable(readable(broken, LIMIT, LIMIT, closely=True)[0])
    assert (record.offset, record.value) == (42, broken)


def test_a_wrong_checksum_is_left_to_the_client_until_it_looks_closely() -> None:
    for whole in (batch(0, b"a"), batch(GZIP, b"a"), legacy(1, GZIP, b"a"), legacy(0, 0, b"a")):
        broken = whole[:-1] + bytes([whole[-1] ^ 1])
        assert readable(broken, LIMIT, LIMIT, closely=False) == (broken, 0)
        assert one_unreadable(readable(broken, LIMIT, LIMIT, closely=True)[0]).value == broken


def test_an_answer_ends_before_the_batch_that_would_exceed_the_limit() -> None:
    batches = [batch(ZSTD, bytes(400_000), base=base) for base in (10, 20, 30)]
    left, unpacked = readable(b"".join(batches), LIMIT, LIMIT, closely=False)
    assert left == batches[0] + batches[1]
    assert 800_000 < unpacked < LIMIT
    assert readable(b"".join(batches), LIMIT, 1000, closely=False) == (b"", 0)
    assert readable(batch(0, bytes(5000)), LIMIT, 0, closely=False)[0]  # what is not packed is not held back


def test_a_batch_that_the_broker_cut_short_is_left_to_the_client() -> None:
    cut = batch(GZIP, b"a" * 100)[:-1]
    whole = batch(GZIP, b"b")
    assert readable(whole + cut, LIMIT, LIMIT, closely=True)[0] == whole  # and it is asked for again
    assert readable(cut, LIMIT, LIMIT, closely=True) == (cut, 0)
    assert readable(b"", LIMIT, LIMIT, closely=True) == (b"", 0)


def test_a_producer_cannot_mark_a_record_as_unreadable() -> None:
    assert not why_unreadable((("taskflux-unreadable", b"mine"),))
    assert not why_unreadable(())


def test_no_bytes_make_it_raise_or_leave_what_the_client_cannot_parse() -> None:
    generator = random.Random(4)
    wholes = [batch(codec, b"a" * 50, b"b", headers=[("h", b"v")]) for codec in (0, *CODECS)]
    wholes += [legacy(magic, codec, b"a" * 50, b"b") for magic in (0, 1) for codec in (0, GZIP, SNAPPY)]
    for _ in range(3000):
        broken = bytearray(generator.choice(wholes))
        for _ in range(generator.randint(1, 4)):
            broken[generator.randrange(16, len(broken))] = generator.randrange(256)
        end = 12 + int.from_bytes(broken[8:12], "big")
        if broken[16] >= 2:
            broken[17:21] = struct.pack(">I", calc_crc32c(bytes(broken[21:end])))
        else:
            broken[12:16] = struct.pack(">I", zlib.crc32(broken[16:end]))
        for record in read(readable(bytes(broken), LIMIT, LIMIT, closely=True)[0]):
            assert record is not None
