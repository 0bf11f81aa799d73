from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest

from taskflux.handlers.relay import Relay
from taskflux.store.publishing import PendingPublish, Publishing
from taskflux.upkeep.outflow import Allowance, Outflow
from taskflux.worker.process import Process
from taskflux.worker.publisher import Publisher
from taskflux.worker.settings import Settings


@dataclass
class World:
    """One due type; in place of what the relay calls, and then drains it."""

    allowed: Allowance
    settings: Settings = field(default_factory=Settings)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[object] = field(default_factory=list)
    healthy: bool = True

    async def next_due(self, within: float) -> dict[str | None, float]:
        return {"sms": -1.0}

    async def refresh(self) -> None:
        pass

    async def allowance(self, task_type: str) -> Allowance:
        return self.allowed

    async def take(self, task_type: str, limit: int, *, probe: bool = False) -> list[PendingPublish]:
        self.asked.append((limit, probe))
        return []

    async def publish(self, tasks: list[PendingPublish], *, probe: bool = False) -> int:
        self.asked.append(probe)
        self.draining.set()
        return 0

    def released(self, task_type: str, tasks: int) -> None:
        pass

    async def pause(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize("allowed", [Allowance(4, probe=True), Allowance(4)])
async def test_a_probe_is_chosen_from_other_tasks_than_normal_publishing(allowed: Allowance) -> None:
    world = World(allowed)
    relay = Relay(cast("Process", world), cast("Publishing", world), cast("Publisher", world), cast("Outflow", world))
    async with asyncio.timeout(10):
        await relay.run()
    assert world.asked == [(4, allowed.probe), allowed.probe]
