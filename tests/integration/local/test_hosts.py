"""The HTTP ports of `taskflux dev` refuse websites that point their own name at them (DNS rebinding)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from taskflux.local.ports import free_port
from tests.integration.local.test_dev import PARTS, Dev, folder, remember_free_ports

SERVERS = {*PARTS} - {"postgres", "valkey", "kafka", "smtp"}
TASK = {"taskType": "simulated", "payload": "x"}
MAIL = {"to": "ada@example.org", "subject": "hi", "body": "x"}

__all__ = ["folder"]


@pytest.mark.slow
async def test_no_page_and_no_server_of_dev_answers_to_the_name_of_a_website(folder: Path) -> None:
    port, data = free_port(), folder / "data"
    remember_free_ports(data)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskflux", "dev", "--no-samples", "--port", str(port), "--data-dir", data),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=clean,
    )
    running = Dev(process, data)
    try:
        await running.says(f"Serving on http://127.0.0.1:{port}", within=120)
        ports = json.loads((data / "ports.json").read_text())
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            for part, method, path, body in calls():
                url = f"http://127.0.0.1:{ports[part]}{path}"
                for name in ("attacker.example", f"attacker.example:{ports[part]}"):
                    answer = await client.request(method, url, json=body, headers={"host": name})
                    assert answer.status_code == 400, f"{part} {path}: {answer.status_code}"
                    assert "attacker" not in answer.text
            for name in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}"):
                answer = await client.post(f"http://127.0.0.1:{port}/tasks", json=TASK, headers={"host": name})
                assert answer.status_code == 202
            listed = await client.get(f"http://127.0.0.1:{port}/tasks")
        assert len(listed.json()["items"]) == 3
        process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def calls() -> Iterator[tuple[str, str, str, object]]:
    for part in sorted(SERVERS):
        yield part, "GET", "/livez", None
        yield part, "GET", "/metrics", None
    for path in ("/tasks", "/dead-letters", "/docs", "/openapi.json", "/problems", "/readyz"):
        yield "ingest", "GET", path, None
    yield "ingest", "POST", "/tasks", TASK
    yield "ingest", "POST", "/tasks/batch", [TASK]
    yield "notify", "POST", "/notifications/email", MAIL
    yield "notify", "POST", "/api/email/send", MAIL
    yield "inbox", "GET", "/", None
    yield "inbox", "GET", "/api/messages", None
    yield "inbox", "DELETE", "/api/messages", None
