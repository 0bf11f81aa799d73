"""Probes and metrics on a port apart from the API's."""

from __future__ import annotations

import httpx
import pytest

from taskflux.local.ports import free_port
from tests.integration.system.stack import Stack, eventually
from tests.keys import HEADERS


@pytest.mark.parametrize("target", ["ingest", "process-simulated"])
async def test_probes_and_metrics_are_at_the_management_port(stack: Stack, target: str) -> None:
    api, management = free_port(), free_port()
    child = stack.spawn(
        target, f"{target}-apart", TASKFLUX_HTTP__PORT=str(api), TASKFLUX_HTTP__MANAGEMENT_PORT=str(management)
    )
    async with httpx.AsyncClient(timeout=10, trust_env=False, headers=HEADERS) as client:

        async def status(port: int, path: str) -> int:
            try:
                return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code
            except httpx.TransportError:
                return 0

        async def ready() -> bool:
            assert child.running, "it ended"
            return await status(management, "/readyz") == 200

        await eventually(ready, f"{target} is ready")
        metrics = await client.get(f"http://127.0.0.1:{management}/metrics")
        assert "taskflux_build_info" in metrics.text
        assert await status(management, "/livez") == 200
        if target == "ingest":
            assert await status(management, "/tasks") == 404, "the API is not there"
            assert await status(api, "/metrics") == 404
            assert await status(api, "/readyz") == 200, "for a load balancer that asks the port that it sends to"
            assert await status(api, "/tasks") == 200
        else:
            assert await status(api, "/livez") == 0, "nothing listens there"
    child.kill()
