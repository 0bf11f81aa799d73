"""Records sorted into batches, one queue of them per partition."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from taskflux.stream.record import OutRecord


@dataclass(slots=True)
class Batch:
    """A filled builder, and for each of its records the caller's place."""

    builder: Any
    places: list[int] = field(default_factory=list)


def partition_of(key: bytes | None, partitions: list[int]) -> int:
    """The partition of a key, spread evenly (a CRC: ours promise no order, and a murmur2 in Python is slow)."""
    return random.choice(partitions) if key is None else partitions[zlib.crc32(key) % len(partitions)]


def fill(
    create_builder: Callable[[], Any], records: Iterable[tuple[int, OutRecord]], partitions: dict[str, list[int]]
) -> dict[tuple[str, int], list[Batch]]:
    """(topic, partition) → batches in the order of `records`, which are given as (place, record).

    A record that is larger than a builder's limit is alone in its batch, so that a refusal hits no other.
    """
    queues: dict[tuple[str, int], list[Batch]] = {}
    for place, record in records:
        queue = queues.setdefault((record.topic, partition_of(record.key, partitions[record.topic])), [])
        if not queue or not _append(queue[-1], place, record):
            queue.append(Batch(create_builder()))
            _append(queue[-1], place, record)
    return queues


def _append(batch: Batch, place: int, record: OutRecord) -> bool:
    added = batch.builder.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers))
    if added is None:
        return False
    batch.places.append(place)
    return True
