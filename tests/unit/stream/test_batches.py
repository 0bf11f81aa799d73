from collections import Counter
from typing import Any

from taskflux.stream.envelope import OutRecord
from taskflux.stream.producer import fill


class Builder:
    """Accepts a given number of bytes of value, and always the first record, as aiokafka's does."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.values: list[bytes] = []

    def append(self, *, timestamp: None, key: bytes | None, value: bytes, headers: list[Any]) -> object:
        if self.values and sum(map(len, self.values)) + len(value) > self.limit:
            return None
        self.values.append(value)
        return object()


def test_a_key_keeps_its_partition_and_keys_spread_evenly() -> None:
    def spread(*keys: bytes | None) -> Counter[int]:
        queues = fill(Builder, [(0, OutRecord("t", key, b"")) for key in keys], {"t": range(12)})
        return Counter({number: sum(len(batch.places) for batch in queue) for (_, number), queue in queues.items()})

    assert len(spread(b"a", b"a", b"a")) == 1
    assert spread(b"a") == spread(b"a")
    assert min(spread(*(b"key-%d" % number for number in range(12_000))).values()) > 800
    assert set(spread(*[None] * 500)) == set(range(12))


def test_records_keep_their_order_and_their_places_over_batches() -> None:
    records = [(place, OutRecord("t", b"k", value)) for place, value in enumerate([b"1" * 6, b"2" * 4, b"3" * 3])]
    (queue,) = fill(Builder, records, {"t": [0]}).values()
    assert [batch.builder.values for batch in queue] == [[b"1" * 6, b"2" * 4], [b"3" * 3]]
    assert [batch.places for batch in queue] == [[0, 1], [2]]


def test_an_oversize_record_is_alone_so_that_its_refusal_affects_no_other() -> None:
    records = [(place, OutRecord("t", b"k", value)) for place, value in enumerate([b"1", b"2" * 50, b"3"])]
    (queue,) = fill(Builder, records, {"t": [0]}).values()
    assert [batch.places for batch in queue] == [[0], [1], [2]]


def test_topics_and_partitions_have_batches_of_their_own() -> None:
    records = [(0, OutRecord("t", b"a", b"1")), (1, OutRecord("u", b"a", b"1")), (2, OutRecord("t", b"a", b"1"))]
    queues = fill(Builder, records, {"t": [0], "u": [4]})
    assert {place: queue[0].places for place, queue in queues.items()} == {("t", 0): [0, 2], ("u", 4): [1]}
