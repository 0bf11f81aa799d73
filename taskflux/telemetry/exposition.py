"""This process's metrics as a scraper asks for them: OpenMetrics with exemplars, or Prometheus's plain text."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.registry import Collector

OPEN_METRICS: Final = "application/openmetrics-text"
SWITCHED_OFF: Final = b"metrics are switched off: TASKFLUX_METRICS__ENABLED"
VARY: Final = "Accept, Accept-Encoding"
_LEVEL: Final = 4
"""Of compression: the last tenth of the size would cost as much time as all the rest."""


class Format(NamedTuple):
    """A format of metrics: `encode` writes a registry, `content_type` names it."""

    encode: Callable[[Collector], bytes]
    content_type: str

    @property
    def open_metrics(self) -> bool:
        """Whether it carries exemplars."""
        return self.content_type.startswith(OPEN_METRICS)


PLAIN: Final = Format(generate_latest, CONTENT_TYPE_PLAIN_0_0_4)


def chosen(accept: str) -> Format:
    """The format that a scraper likes best of those there are; plain text for whoever names none of them.

    prometheus_client takes the first that it knows; RFC 9110 (12.5.1) goes by the weights.
    """
    for media_range in _by_weight(accept):
        essence, *parameters = [part.strip() for part in media_range.split(";")]
        if essence == OPEN_METRICS:
            version = next((each[8:].strip('"') for each in parameters if each.startswith("version=")), "1.0.0")
            if version == "1.0.0":
                return Format(*choose_encoder(media_range))
        elif essence in ("text/plain", "text/*", "*/*"):
            return Format(*choose_encoder(media_range))
    return PLAIN


def shown(accept: str) -> tuple[bytes, str]:
    """All metrics of this process, and their content type."""
    encode, content_type = chosen(accept)
    return encode(REGISTRY), content_type


def compressed(body: bytes, accept_encoding: str) -> bytes | None:
    """`body` with gzip, for who takes that; else None."""
    takes = any(each.strip().lower() in ("gzip", "*") for each in _by_weight(accept_encoding))
    return gzip.compress(body, _LEVEL) if takes else None


def _by_weight(header: str) -> Iterator[str]:
    """The members of a header such as Accept, without their weights, the heaviest first; those of weight 0 left out."""
    weighted = []
    for member in header.split(","):
        parts = [part.strip() for part in member.split(";")]
        weight = 1.0
        for part in parts[1:]:
            if part.lower().startswith("q="):
                try:
                    weight = float(part[2:])
                except ValueError:
                    weight = 0.0
        if parts[0] and weight > 0:
            weighted.append((weight, ";".join(part for part in parts if not part.lower().startswith("q="))))
    yield from (member for _, member in sorted(weighted, key=lambda each: -each[0]))
