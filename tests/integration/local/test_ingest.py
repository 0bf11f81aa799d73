"""The metrics of its peers in ingest's /metrics."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from taskflux.local.ingest import fetch_and_merge
from taskflux.local.ports import free_port


async def test_peers_that_answer_are_merged_and_the_others_are_named() -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nup 1\n")
        writer.close()

    async def unwell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(relay, "127.0.0.1", 0) as good,
        await asyncio.start_server(unwell, "127.0.0.1", 0) as bad,
    ):
        peers = {
            "relay": f"http://127.0.0.1:{good.sockets[0].getsockname()[1]}/metrics",
            "dlq-sink": f"http://127.0.0.1:{bad.sockets[0].getsockname()[1]}/metrics",
            "process-sms": f"http://127.0.0.1:{free_port()}/metrics",
        }
        merged = await fetch_and_merge("ingest", "up 1\n", peers)
    family, reached = text_string_to_metric_families(merged)
    assert {sample.labels["peer"]: sample.value for sample in reached.samples} == {
        "relay": 1.0,
        "dlq-sink": 0.0,
        "process-sms": 0.0,
    }
    assert [sample.labels["handler"] for sample in family.samples] == ["ingest", "relay"]
    assert "# handler dlq-sink is left out" in merged
    assert "# handler process-sms is left out: ConnectError" in merged
