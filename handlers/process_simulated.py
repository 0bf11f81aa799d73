"""process-simulated: work that only takes time and sometimes fails. An example of your own handler."""

from __future__ import annotations

import asyncio
import random
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from taskflux.tasks.errors import Transient
from taskflux.tasks.model import Receipt, Task
from taskflux.worker.handler import handler

TEXT_DELAY_MS: Final = 50
"""How long a payload that is just a text takes: long enough to be seen running."""

LONGEST_DELAY_MS: Final = 600_000


class Simulated(BaseModel):
    """A text, or an object whose known keys control the work; all others are ignored."""

    # By its public names only, as in the schema: any other name is an unknown field, and ignored.
    model_config = ConfigDict(extra="allow", frozen=True, alias_generator=to_camel)

    delay_ms: Annotated[float, Field(ge=0, le=LONGEST_DELAY_MS)] = 0
    fail_rate: Annotated[float, Field(ge=0, le=1)] = 0
    simulate_fail: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        return {"text": value, "delayMs": TEXT_DELAY_MS} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        known = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string"}, known]}

    def fails(self, draw: float) -> bool:
        """Whether this attempt fails; `draw` is from [0, 1)."""
        return self.simulate_fail or draw < self.fail_rate


@handler("simulated", payload=Simulated, timeout=LONGEST_DELAY_MS / 1000 + 60)
async def process_simulated(task: Task[Simulated]) -> Receipt:
    """Wait as long as the payload says, then fail as often as it says."""
    await asyncio.sleep(task.payload.delay_ms / 1000)
    if task.payload.fails(random.random()):
        raise Transient("this failure was asked for")
    return Receipt({"simulated": True, "delayMs": task.payload.delay_ms})
