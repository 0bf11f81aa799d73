"""When two deliveries are the same record: pure."""

from __future__ import annotations

import hashlib


def record_identity(
    topic: str, partition: int, offset: int, timestamp: int, key: bytes | None, value: bytes | None
) -> str:
    """A name for a record by its place, its time (milliseconds since 1970) and its bytes.

    The place alone would not do: a topic that was deleted and made again counts from 0.
    """
    digest = hashlib.sha256()
    for part in (topic.encode("utf-8", "replace"), key, value):
        digest.update(b"-" if part is None else b"%d:" % len(part) + part)
    return f"record:{partition}:{offset}:{timestamp}:{digest.hexdigest()}"
