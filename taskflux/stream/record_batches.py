"""Record batches as a broker delivers them, inspected before aiokafka unpacks them, which it does without a limit.

Our own batches are compressed only if a topic's `compression.type` says so. A batch that would unpack to too much, uses
an unknown codec, or is broken, is replaced by a batch of one record. That record holds the bytes of the whole batch and
the reason (`why_unreadable`). The partition continues after it, and the record is handled as poison.

The format: https://kafka.apache.org/documentation/#recordbatch; before Kafka 0.11, a batch was a message whose value
held the others (magic 0 and 1).
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterator
from mmap import mmap
from struct import Struct
from struct import error as StructError
from typing import Any, Final

import cramjam
from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record import MemoryRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, decode_varint

from taskflux.stream.envelope import Headers, Record

BROKEN: Final = (ValueError, AssertionError, SystemError, CorruptRecordException, UnsupportedCodecError)
"""The errors of aiokafka while it parses records; it would raise them again and again."""

_MARK: Final = f"taskflux-unreadable-{secrets.token_hex(16)}"
"""The last header of a record that replaces what cannot be read. No producer can know it."""

_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_CODEC, _LOG_APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20
_NEWEST_MAGIC: Final = 2
_LENGTH: Final = Struct(">8xi")
_MAGIC_AT: Final = 16
_HEADER: Final = Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and last timestamp, producer's
id, epoch and sequence, number of records."""
_CRC_AT, _CHECKED_FROM, _LAST_DELTA_AT = 17, 21, 23
_MESSAGE: Final = Struct(">qiIbb")
"""For magic 0 and 1: offset, length, CRC, magic, attributes; in magic 1, a timestamp follows."""
_MESSAGE_CHECKED_FROM: Final = 16
_SHORTEST: Final = _MESSAGE.size - _LENGTH.size
_INT, _LONG, _UNSIGNED = Struct(">i"), Struct(">q"), Struct(">I")
_XERIAL: Final = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
_PIECE: Final = 1 << 20
"""Bytes that gzip unpacks to before they are counted."""
_NO_LIMIT: Final = (1 << 31) - 1


class Unreadable(Exception):
    """A batch cannot be read; the message says why, and does not quote it."""


def record_of(found: Any, epoch: int) -> Record:
    """A record as aiokafka has parsed it; `epoch` is the consumer's."""
    headers, why = found.headers, why_unreadable(found.headers)
    return Record(
        found.topic,
        found.partition,
        found.offset,
        found.timestamp,
        found.key,
        found.value,
        headers[:-1] if why else headers,
        epoch,
        why,
    )


def why_unreadable(headers: Headers) -> str:
    """Why a record replaces what cannot be read; empty for every other record."""
    name, reason = headers[-1] if headers else ("", None)
    return (reason or b"").decode("utf-8") if name == _MARK else ""


def suspect(answer: bytes) -> bool:
    """Whether any batch in an answer must be unpacked, or has an unsupported format."""
    return any(batch[_MAGIC_AT] > _NEWEST_MAGIC or _codec(batch) for batch in _batches(memoryview(answer)))


def readable(answer: bytes, limit: int, left: int, *, closely: bool) -> tuple[bytes, int]:
    """The batches of an answer that aiokafka may unpack, and their unpacked bytes.

    Args:
        limit: the most unpacked bytes of one batch.
        left: the most unpacked bytes of all; the answer ends before the batch that would exceed it.
        closely: read every record, and replace those that cannot be read.
    """
    kept: list[bytearray | memoryview] = []
    unpacked = 0
    for batch in _batches(memoryview(answer)):
        weight, found = _inspected(batch, limit, closely)
        # aiokafka assumes that all batches of an answer have the magic of the first: 0, 1, or 2.
        if (weight and unpacked + weight > left) or (kept and kept[0][_MAGIC_AT] != found[_MAGIC_AT]):
            return b"".join(kept), unpacked
        unpacked += weight
        kept.append(found)
    return b"".join(kept) if kept else answer, unpacked


def _inspected(batch: memoryview, limit: int, closely: bool) -> tuple[int, bytearray | memoryview]:
    try:
        weight = _weight(batch, limit)
    except Unreadable as reason:
        return 0, _stand_in(batch, str(reason))
    return weight, _read(batch) if closely else batch


def _batches(answer: memoryview) -> Iterator[memoryview]:
    """Each whole batch; a broker may cut off the last one. After an impossible length, nothing follows."""
    at = 0
    while at + _MESSAGE.size <= len(answer):
        (length,) = _LENGTH.unpack_from(answer, at)
        end = at + _LENGTH.size + length if length >= _SHORTEST else len(answer)
        if end > len(answer):
            return
        yield answer[at:end]
        at = end


def _codec(batch: memoryview) -> int:
    """The number of the codec that compresses the records of a batch; 0: none, or it is never unpacked."""
    if batch[_MAGIC_AT] < _NEWEST_MAGIC:
        return int(_MESSAGE.unpack_from(batch)[4]) & _CODEC
    attributes = int(_HEADER.unpack_from(batch)[5]) if len(batch) >= _HEADER.size else 0
    control = batch[_MAGIC_AT] == _NEWEST_MAGIC and attributes & _CONTROL
    return 0 if control else attributes & _CODEC


def _weight(batch: memoryview, limit: int) -> int:
    """The unpacked bytes of a batch; 0 if there is nothing to unpack, or aiokafka will refuse it by its checksum.

    Raises Unreadable if it is more than `limit`, or cannot be unpacked.
    """
    if batch[_MAGIC_AT] > _NEWEST_MAGIC:
        raise Unreadable(f"the batch has format {batch[_MAGIC_AT]}, which is not supported")
    number = _codec(batch)
    if not number or not _is_intact(batch):
        return 0
    unpacked_size = _SIZES.get(number)
    if unpacked_size is None:
        raise Unreadable(
            f"the batch uses codec {number}, which is not supported: its producer must use gzip, snappy, lz4 or zstd"
        )
    try:
        return unpacked_size(_packed(batch), limit)
    except (cramjam.DecompressionError, zlib.error, StructError, EOFError) as error:
        raise Unreadable(
            f"the batch is broken or unpacks to more than {limit:,} bytes;"
            f" its producer must send smaller batches: {error}"
        ) from None


def _is_intact(batch: memoryview) -> bool:
    if batch[_MAGIC_AT] < _NEWEST_MAGIC:
        return bool(zlib.crc32(batch[_MESSAGE_CHECKED_FROM:]) == _MESSAGE.unpack_from(batch)[2])
    return bool(calc_crc32c(bytes(batch[_CHECKED_FROM:])) == _HEADER.unpack_from(batch)[4])


def _packed(batch: memoryview) -> memoryview:
    """The packed records. Raises StructError."""
    if batch[_MAGIC_AT] == _NEWEST_MAGIC:
        return batch[_HEADER.size :]
    at = _MESSAGE.size + (8 if batch[_MAGIC_AT] else 0)
    (key,) = _INT.unpack_from(batch, at)
    at += _INT.size + max(key, 0)
    (value,) = _INT.unpack_from(batch, at)
    at += _INT.size
    return batch[at : at + max(value, 0)]


def _gzip_size(packed: memoryview, limit: int) -> int:
    size, rest = 0, bytes(packed)
    while rest:  # members follow each other
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(rest, _PIECE)
            rest = member.unconsumed_tail
            size += len(piece)
            if size > limit:
                raise EOFError("there is more")
            if not piece and not rest and not member.eof:
                raise EOFError("it ends too early")
        rest = member.unused_data.lstrip(b"\0")
    return size


def _snappy_size(packed: memoryview, limit: int) -> int:
    """Raw, or the blocks of xerial's stream, each behind its length (https://github.com/xerial/snappy-java)."""
    if bytes(packed[: len(_XERIAL)]) != _XERIAL:
        return _snappy_block(packed, limit)
    size, at = 0, len(_XERIAL)
    while at < len(packed):
        (length,) = _INT.unpack_from(packed, at)
        at += _INT.size
        if length < 0:
            raise EOFError("a block has a negative length")
        size += _snappy_block(packed[at : at + length], limit - size)
        at += length
    return size


def _snappy_block(block: memoryview, limit: int) -> int:
    size: int = cramjam.snappy.decompress_raw_len(block)
    if size > limit:
        raise EOFError("there is more")
    cramjam.snappy.decompress_raw(block)  # the length that it states may be wrong
    return size


def _lz4_size(packed: memoryview, limit: int) -> int:
    with mmap(-1, limit) as room:  # takes only as much memory as is written
        return int(cramjam.lz4.decompress_into(packed, room))


def _zstd_size(packed: memoryview, limit: int) -> int:
    with mmap(-1, limit) as room:
        return int(cramjam.zstd.decompress_into(packed, room))


_SIZES: Final = {_GZIP: _gzip_size, _SNAPPY: _snappy_size, _LZ4: _lz4_size, _ZSTD: _zstd_size}
_UNPACK: Final = {
    _GZIP: codec.gzip_decode,
    _SNAPPY: codec.snappy_decode,
    _LZ4: codec.lz4_decode,
    _ZSTD: codec.zstd_decode,
}


def _read(batch: memoryview) -> memoryview | bytearray:
    """The batch if aiokafka can read it; otherwise what can be kept of it."""
    records = MemoryRecords(bytes(batch))
    try:
        found = records.next_batch()
        if found is None:
            raise Unreadable("the batch's length is wrong")
        if not found.validate_crc():
            raise Unreadable("the batch's checksum is wrong")
        if not found.is_control_batch:
            for _ in found:
                pass
    except Unreadable as reason:
        return _stand_in(batch, str(reason))
    except BROKEN as error:
        return _repaired(batch) or _stand_in(batch, f"the client cannot parse the batch ({type(error).__name__})")
    return batch


def _stand_in(batch: memoryview, reason: str) -> bytearray:
    """A batch of one record at the last offset of `batch`, whose value is the bytes of `batch`."""
    (base,), delta, timestamp = _LONG.unpack_from(batch), 0, -1
    if batch[_MAGIC_AT] == _NEWEST_MAGIC and len(batch) >= _HEADER.size:
        _, _, _, _, _, _, delta, _, timestamp, *_ = _HEADER.unpack_from(batch)
    headers: list[tuple[str, bytes | None]] = [(_MARK, reason.encode("utf-8"))]
    return _rebuilt(base, max(delta, 0), [(max(delta, 0), timestamp, None, bytes(batch), headers)])


def _repaired(batch: memoryview) -> bytearray | None:
    """A batch with the same records, where those with a header whose name is not UTF-8 are marked; None: its records
    cannot be separated.
    """
    if batch[_MAGIC_AT] < _NEWEST_MAGIC:
        return None
    records: list[_Record] = []
    at = 0
    try:
        base, _, _, _, _, attributes, last, first_timestamp, newest, _, _, _, count = _HEADER.unpack_from(batch)
        data = bytes(batch[_HEADER.size :])
        if number := _codec(batch):
            data = _UNPACK[number](data)
        while len(records) < count:
            delta, later, key, value, headers, at = _parse(data, at)
            timestamp = newest if attributes & _LOG_APPEND_TIME else first_timestamp + later
            records.append((delta, timestamp, key, value, headers))
        if at != len(data):
            raise ValueError("bytes follow the last record")
        return _rebuilt(base, last, records)
    except (ValueError, IndexError, OverflowError, StructError):
        return None


_Record = tuple[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""Offset behind the batch's first, timestamp, key, value, headers."""


def _parse(data: bytes, at: int) -> tuple[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]], int]:
    """The record at a place in unpacked records, and the place of the next one. Raises ValueError, IndexError."""
    length, at = decode_varint(data, at)
    end = at + length
    later, at = decode_varint(data, at + 1)
    delta, at = decode_varint(data, at)
    key, at = _bytes(data, at)
    value, at = _bytes(data, at)
    count, at = decode_varint(data, at)
    headers: list[tuple[str, bytes | None]] = []
    reason = b""
    for _ in range(count):
        name, at = _bytes(data, at)
        content, at = _bytes(data, at)
        try:
            headers.append(((name or b"").decode("utf-8"), content))
        except UnicodeDecodeError:
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
            reason = b"the name of a header is not UTF-8"
    if at != end:
        raise ValueError("a record ends elsewhere than it says")
    return delta, later, key, value, [*headers, (_MARK, reason)] if reason else headers, at


def _bytes(data: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(data, at)
    if size < 0:
        return None, at
    if at + size > len(data):
        raise ValueError("a field ends behind the batch")
    return data[at : at + size], at + size


def _rebuilt(base: int, last: int, records: list[_Record]) -> bytearray:
    """An uncompressed batch of these records, whose last offset is `base` + `last`."""
    builder = DefaultRecordBatchBuilder(_NEWEST_MAGIC, 0, 0, -1, -1, -1, _NO_LIMIT)
    for record in records:
        builder.append(record[0], record[1], record[2], record[3], record[4])
    batch = bytearray(builder.build())
    _LONG.pack_into(batch, 0, base)
    _INT.pack_into(batch, _LAST_DELTA_AT, last)
    _UNSIGNED.pack_into(batch, _CRC_AT, calc_crc32c(bytes(batch[_CHECKED_FROM:])))
    return batch
