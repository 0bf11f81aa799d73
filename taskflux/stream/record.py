"""A Kafka record, as it is taken and as it is sent."""

from __future__ import annotations

from typing import NamedTuple

Headers = tuple[tuple[str, bytes | None], ...]
"""In the order of the wire; a name may stand more than once."""


class Record(NamedTuple):
    """A record as Kafka delivered it.

    `timestamp` is in milliseconds since 1970. `epoch` is the consumer's own count of the logs it has read: it tells
    a record of a recreated topic from one at the same offset of the topic before. `unreadable` says why the client
    could not parse it (a codec it lacks, a header's name that is not UTF-8): key, value and headers are then empty.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    epoch: int = 0
    unreadable: str = ""

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return _size(self.key, self.value, self.headers)


class OutRecord(NamedTuple):
    """A record to be sent; its key picks the partition."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return _size(self.key, self.value, self.headers)


class Encoded(NamedTuple):
    """What an envelope becomes on the wire: `OutRecord(topic, *encoded)`."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    total = len(key or b"") + len(value or b"")
    for name, content in headers:
        total += len(name.encode("utf-8", "replace")) + len(content or b"")
    return total
