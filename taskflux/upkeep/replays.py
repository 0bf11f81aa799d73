"""Bulk replays of dead letters, carried on batch by batch by the leader.

All that has to be remembered stands in the store, so it does not matter who carries the next batch: a replay goes on
where it was when its carrier is lost.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from taskflux.store.dead_letters import BulkReplay, DeadLetters
from taskflux.store.errors import RefusedData, SchemaTooOld, StoreBusy
from taskflux.telemetry import metrics, tracing

log = logging.getLogger(__name__)

BATCH: Final = 500
REPLAY: Final = tracing.Operation("replay tasks", "INTERNAL", tracing.POSTGRES, "db.operation.batch.size")
ROUNDS: Final = 10
"""Batches of each bulk replay in one tick, at most: the leader has other things to do as well."""


class BulkReplays:
    """Sends as many letters as the rates of the running bulk replays allow."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters

    async def tick(self) -> None:
        """Carry every running bulk replay on by what its rate allows now.

        Raises:
            StoreUnavailable: PostgreSQL is unavailable; what was sent is recorded, the rest follows with the next tick.
        """
        try:
            for _ in range(ROUNDS):
                allowed = [bulk for bulk in await self._letters.running_bulk() if bulk.allowance > 0]
                if not allowed:
                    return
                for bulk in allowed:
                    await self._carry_on(bulk)
        except SchemaTooOld as error:
            # Nobody can have asked for one yet.
            log.debug("no bulk replays before the next migration", extra={"error": str(error)})
        except (StoreBusy, RefusedData) as error:
            log.warning("a bulk replay waits for the next tick", extra={"error": type(error).__name__})

    async def _carry_on(self, bulk: BulkReplay) -> None:
        limit = min(bulk.allowance, BATCH)
        began = time.time_ns()
        looked_at, replayed = await self._letters.carry_on(bulk, limit)
        if tracing.on:  # only now it is known whose traces it is about
            with tracing.batch(REPLAY, [letter.traceparent for letter in replayed], began=began):
                pass
        for letter in replayed:
            metrics.REPLAYED.labels(metrics.error_class(letter.error_class), "bulk").inc()
        if looked_at < limit or looked_at == bulk.rest:
            log.info("a bulk replay has come to its end", extra={"replay": str(bulk.id)})
