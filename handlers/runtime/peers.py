"""Several processes' Prometheus texts as one, each sample with the `handler` it is from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT = 2.0
"""Seconds that a peer may take to answer."""


async def fetch_and_merge(own_name: str, own_text: str, peers: Mapping[str, str]) -> str:
    """This process's text with those of its peers (name → URL of their /metrics).

    A peer that does not answer is left out; a comment line at the end says so.
    """
    texts = {own_name: own_text}
    missing: dict[str, str] = {}
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as client:
        for name, answer in await asyncio.gather(*(_fetch(client, name, url) for name, url in peers.items())):
            if isinstance(answer, str):
                texts[name] = answer
            else:
                missing[name] = type(answer).__name__
    comments = [f"# handler {_one_line(name)} is left out: {why}\n" for name, why in sorted(missing.items())]
    return await merge(texts) + "".join(comments)


async def merge(texts: dict[str, str]) -> str:
    """Merge texts (handler → exposition) in format 0.0.4 into one.

    A metric is described as the first text that has it does; a text that cannot be read, or a metric whose type is
    another there, is left out with a comment line. A sample's own `handler` label becomes `exported_handler`.
    """
    return await asyncio.to_thread(_merge, texts)  # reading some 100 kB takes longer than a loop should stand still


class _Merged(CollectorRegistry):
    """Families for `generate_latest`, which asks for nothing more."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _merge(texts: Mapping[str, str]) -> str:
    merged: dict[str, Metric] = {}
    comments: list[str] = []
    for handler, text in texts.items():
        try:
            families = list(text_string_to_metric_families(text))
        except ValueError as error:
            comments.append(f"# handler {_one_line(handler)} is left out: {_one_line(str(error))[:200]}\n")
            continue
        for family in families:
            target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if target.type != family.type:
                comments.append(f"# {family.name} of {_one_line(handler)} is left out: it is a {family.type} there\n")
                continue
            target.samples.extend(_labelled(sample, handler) for sample in family.samples)
    return generate_latest(_Merged(merged.values())).decode() + "".join(comments)


def _labelled(sample: Sample, handler: str) -> Sample:
    labels = dict(sample.labels)
    if "handler" in labels:
        labels["exported_handler"] = labels.pop("handler")
    return sample._replace(labels={"handler": handler, **labels})


async def _fetch(client: httpx.AsyncClient, name: str, url: str) -> tuple[str, str | httpx.HTTPError]:
    try:
        answer = await client.get(url, headers={"accept": "text/plain;version=0.0.4"})
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return name, error
    return name, answer.text


def _one_line(text: str) -> str:
    return " ".join(text.split())
