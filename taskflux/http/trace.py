"""W3C trace context of a request (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02


def incoming(header: bytes | None) -> str | None:
    """The caller's traceparent in version 00, or None when it has none or one that the standard says to ignore."""
    match = _TRACEPARENT.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    version, trace, parent, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    known = int(flags, 16) & (_SAMPLED | _RANDOM)
    return f"00-{trace.decode()}-{parent.decode()}-{known:02x}"


def fresh(bits: Callable[[int], int] = random.getrandbits) -> str:
    """A traceparent of our own, so that every task has a trace id.

    It is not sampled: nobody recorded a span of this id, and the flag would claim that somebody did.
    """
    return f"00-{bits(128) or 1:032x}-{bits(64) or 1:016x}-{_RANDOM:02x}"


def incoming_or_fresh(header: bytes | None) -> str:
    """The caller's traceparent, or a new one."""
    return incoming(header) or fresh()
