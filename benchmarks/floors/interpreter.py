"""What an interpreter makes of Python like ours: `python -S benchmarks/floors/interpreter.py ITEMS`.

Two builds of the same Python differ by 15 % in the instructions they need for the same program. `benchmarks.guard`
counts this one, to compare figures of different builds. A change here makes its expected figures invalid.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from types import coroutine
from uuid import UUID

BATCH = 50
TEXT = json.dumps(
    {"taskType": "noop", "payload": {"to": "someone@example.org", "number": 12345, "text": "hello " * 40}}
)


class State(Enum):
    """Of an item."""

    WAITS = "waits"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Item:
    """What a document becomes."""

    id: UUID
    type: str
    payload: str
    state: State


class Keeper:
    """Keeps items until they are settled."""

    def __init__(self) -> None:
        self.items: dict[UUID, Item] = {}
        self.put_so_far = 0

    def put(self, item: Item) -> None:
        """Keep an item."""
        known = self.items.get(item.id)
        if known is None or known.state is not item.state:
            self.items[item.id] = item
        self.put_so_far += 1

    async def settle(self, item: Item) -> Item | None:
        """Forget an item, after others had their turn."""
        try:
            await turn()
            return self.items.pop(item.id)
        except KeyError:
            return None


@coroutine
def turn() -> Generator[None, None, None]:
    """Let others go first."""
    yield


def batch(keeper: Keeper, first: int) -> str:
    """Read, keep, settle and tell the items of a batch."""
    items = []
    for number in range(first, first + BATCH):
        document = json.loads(TEXT)
        state = State.ENDED if number % 2 else State.WAITS
        item = Item(UUID(int=number), document["taskType"], json.dumps(document["payload"]), state)
        keeper.put(item)
        items.append(item)
    running = [keeper.settle(item) for item in items]
    for each in running:
        each.send(None)
    for each in running:
        try:
            each.send(None)
        except StopIteration:
            continue
    return ",".join(f"{item.id}:{item.type!r}:{item.state.value}" for item in items)


if __name__ == "__main__":
    everything = Keeper()
    for start in range(0, int(sys.argv[1]), BATCH):
        batch(everything, start)
    if everything.items:
        sys.exit("not all items were settled")
