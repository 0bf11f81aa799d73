from __future__ import annotations

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

from taskflux.stream.protocol import _timestamp

APPENDED = 0x08
"""The bit of a batch's attributes that says that the broker has set its timestamp."""


def batch(base: int, *timestamps: int, attributes: int = 0) -> bytes:
    """Records from offset `base` on, as a broker hands them out."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=10_000,
    )  # fmt: skip
    for offset, timestamp in enumerate(timestamps):
        builder.append(offset, timestamp=timestamp, key=None, value=b"v", headers=[])
    built = bytearray(builder.build())
    built[0:8] = base.to_bytes(8, "big")
    built[21:23] = (int.from_bytes(built[21:23], "big") | attributes).to_bytes(2, "big")
    return bytes(built)


@pytest.mark.parametrize(("offset", "seconds"), [(5, 1.5), (6, 1.5), (7, 9.0), (8, None)])
def test_the_batch_that_holds_the_record_says_when_it_was_written(offset: int, seconds: float | None) -> None:
    assert _timestamp(batch(5, 1500, 2500) + batch(7, 9000), offset) == seconds


def test_where_the_broker_sets_the_time_its_own_counts() -> None:
    assert _timestamp(batch(0, 1500, 7500, attributes=APPENDED), 0) == 7.5


def test_what_cannot_be_read_says_nothing() -> None:
    assert _timestamp(b"", 0) is None
    assert _timestamp(batch(0, 1500)[:-1], 0) is None  # the rest of it did not fit
    assert _timestamp(batch(0, -1), 0) is None
    old = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=10_000)
    old.append(0, timestamp=1500, key=None, value=b"v")
    assert _timestamp(bytes(old.build()), 0) is None
