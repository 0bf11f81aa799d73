"""A claim as its handler sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskflux.store.claims import Claim
from taskflux.tasks.model import Task


def task_of(task_type: str, claim: Claim, payload: Any) -> Task[Any]:
    """The task that was claimed, with its payload as the handler takes it."""
    return Task(
        claim.id,
        task_type,
        payload,
        claim.attempt,
        claim.max_attempts,
        claim.replays,
        claim.created_at,
        claim.tenant,
        claim.key,
        _object(claim.metadata),
        _object(claim.progress),
    )


def _object(text: str | None) -> Mapping[str, Any]:
    return json.loads(text) if text else {}
