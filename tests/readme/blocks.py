"""The commands of a README that are checked: fenced `sh` blocks under a comment that names them.

::

    <!-- check: submit a mail, prints: taskId -->
    ```sh
    curl -s localhost:8080/tasks -d '…'
    ```

`prints:` is optional: text that the block's output has to contain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = re.compile(
    r"^<!-- *check: *(?P<name>[^,\n]+?) *(?:, *prints: *(?P<prints>[^\n]+?) *)?-->\s*\n```sh\n(?P<body>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"^<!-- *check:", re.MULTILINE)
# What keeps running while the commands after it are tried, as in a second terminal.
SERVES = re.compile(r"^(make run|(\S*/)?taskflux dev)\b")


class BadReadme(Exception):
    """The README has nothing to check, or says it in a way that cannot be followed; the text says what."""


@dataclass(frozen=True, slots=True)
class Block:
    """One checked block."""

    name: str
    script: str
    prints: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done before the program serves, the command that serves, and what is done beside it."""

    before: Sequence[Block]
    serve: Block
    beside: Sequence[Block]


def checked_blocks(text: str) -> list[Block]:
    """The checked blocks in order.

    Raises:
        BadReadme: there is none, or a comment has no `sh` block right under it.
    """
    blocks = [Block(found["name"], found["body"], found["prints"]) for found in BLOCK.finditer(text)]
    marks = len(COMMENT.findall(text))
    if marks == 0:
        raise BadReadme(
            "README.md has no checked block: put <!-- check: some name --> right before each ```sh block of the quick"
            " start"
        )
    if len(blocks) != marks:
        raise BadReadme(
            f"README.md has {marks} <!-- check: … --> comments, but only {len(blocks)} of them stand right before a"
            " ```sh block"
        )
    return blocks


def plan(blocks: Sequence[Block]) -> Plan:
    """Split the blocks at the command that serves, which may stand at the end of a block with others.

    Raises:
        BadReadme: no command, or more than one, starts the program; or one stands before other commands of its block.
    """
    serving = [number for number, block in enumerate(blocks) if any(map(SERVES.match, block.script.splitlines()))]
    if len(serving) != 1:
        raise BadReadme(
            f"README.md has {len(serving)} checked blocks with `make run` or `taskflux dev`, and one is needed"
        )
    at = serving[0]
    block = blocks[at]
    lines = block.script.rstrip().splitlines()
    if not SERVES.match(lines[-1]):
        raise BadReadme(f"in the block “{block.name}” commands follow the one that keeps running: put them in another")
    first = Block(block.name, "\n".join(lines[:-1]) + "\n")
    return Plan([*blocks[:at], first], Block(block.name, lines[-1], block.prints), blocks[at + 1 :])
