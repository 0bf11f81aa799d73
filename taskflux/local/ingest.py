"""ingest as `taskflux dev` runs it: its `/metrics` shows those of every process, each sample with its `handler`.

Every process counts by itself, so nothing is added up: counters, gauges and the buckets of histograms stand there once
for each of them, and `sum` is the reader's. Exemplars survive where OpenMetrics is asked for.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import httpx
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from taskflux.local.ports import INBOX, PEERS
from taskflux.providers.answers import UNPACKED, ask
from taskflux.telemetry.instruments import OPEN_METRICS, Format, chosen, shown
from taskflux.telemetry.metrics import PEER_UP
from taskflux.worker.process import Process, service

PLAIN: Final = chosen("")
TIMEOUT: Final = 2.0
"""Seconds that a peer may take to answer."""
REFRESH_EVERY: Final = 1.0
"""Seconds between two looks for task types: a schema that was just edited holds for the next task that is sent."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""Bytes of an answer that are read."""


@service("ingest", own_http=True)
async def ingest(process: Process) -> None:
    """Serve as the deployment does, with every process's metrics, and a link to the inbox."""
    file = Path(os.environ[PEERS])

    async def exposition(accept: str) -> tuple[bytes, str]:
        text = await asyncio.to_thread(file.read_text)  # anew each time: handlers come and go
        peers: Mapping[str, str] = json.loads(text)
        body, content_type = await asyncio.to_thread(shown, accept)
        merged = await fetch_and_merge(process.name, body.decode(), peers, chosen(accept))
        return merged.encode(), content_type

    deployment = importlib.import_module("taskflux.handlers.ingest")
    await deployment.serve_api(process, exposition, os.environ.get(INBOX), refresh_every=REFRESH_EVERY)


async def fetch_and_merge(own_name: str, own_text: str, peers: Mapping[str, str], style: Format = PLAIN) -> str:
    """This process's text with those of its peers (name → URL of their /metrics), all in the same style.

    A peer that does not answer is left out: `taskflux_peer_up` says so, and in plain text a comment says why.
    """
    texts = {own_name: own_text}
    missing: dict[str, str] = {}
    accept = OPEN_METRICS if style.open_metrics else "text/plain;version=0.0.4"
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, headers={"accept": accept, **UNPACKED}) as client:
        found = await asyncio.gather(*(_fetch(client, name, url) for name, url in peers.items()))
    for name, text, why in found:
        if text is None:
            missing[name] = why
        else:
            texts[name] = text
    up = GaugeMetricFamily(PEER_UP.declared.name, PEER_UP.declared.sentence, labels=("peer",))
    for name in peers:
        up.add_metric((name,), float(name in texts))
    comments = [f"# handler {_one_line(name)} is left out: {why}\n" for name, why in sorted(missing.items())]
    return await merge(texts, style, (up,), comments)


async def merge(
    texts: Mapping[str, str], style: Format = PLAIN, further: Iterable[Metric] = (), comments: Iterable[str] = ()
) -> str:
    """Merge texts (handler → exposition) into one, with `further` families.

    A metric is described as the first text that has it does; a text that cannot be read, or a metric whose type is
    another there, is left out (with a comment line, in plain text). A sample's own `handler` label becomes
    `exported_handler`, as Prometheus does it.
    """
    # Reading some 100 kB takes longer than a loop should stand still.
    return await asyncio.to_thread(_merge, texts, style, list(further), list(comments))


class _Merged(CollectorRegistry):
    """Families for an encoder, which asks for nothing more."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _merge(texts: Mapping[str, str], style: Format, further: list[Metric], comments: list[str]) -> str:
    merged: dict[str, Metric] = {}
    for handler, text in texts.items():
        try:
            families = list(_read(text))
        except ValueError as error:
            comments.append(f"# handler {_one_line(handler)} is left out: {_one_line(str(error))[:200]}\n")
            continue
        for family in families:
            target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if target.type != family.type:
                comments.append(f"# {family.name} of {_one_line(handler)} is left out: it is a {family.type} there\n")
                continue
            target.samples.extend(_labelled(sample, handler) for sample in family.samples)
    text = style.encode(_Merged([*merged.values(), *further])).decode()
    return text if style.open_metrics else text + "".join(comments)  # OpenMetrics knows no comments


def _read(text: str) -> Iterable[Metric]:
    """Whoever was asked for OpenMetrics may know plain text alone."""
    if text.endswith("# EOF\n"):
        return open_metrics.text_string_to_metric_families(text)  # type: ignore[no-any-return, no-untyped-call]
    return text_string_to_metric_families(text)


def _labelled(sample: Sample, handler: str) -> Sample:
    labels = dict(sample.labels)
    if "handler" in labels:
        free = "exported_handler"
        while free in labels:
            free = f"exported_{free}"
        labels[free] = labels.pop("handler")
    return sample._replace(labels={"handler": handler, **labels})


async def _fetch(client: httpx.AsyncClient, name: str, url: str) -> tuple[str, str | None, str]:
    """The text of `name`, or why there is none."""
    try:
        answer = await ask(client, client.build_request("GET", url), None, seconds=TIMEOUT, most=MOST_BYTES)
    except (httpx.HTTPError, TimeoutError) as error:
        return name, None, type(error).__name__
    if answer.status != httpx.codes.OK:
        return name, None, f"HTTP {answer.status}"
    return name, answer.body.decode("utf-8", "replace"), ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
