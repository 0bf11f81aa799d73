"""The commands of a page that are checked: fenced `sh` blocks under a comment that names them.

::

    <!-- check: submit a mail, prints: taskId -->
    ```sh
    curl -s localhost:8080/tasks -d '…'
    ```

`prints:` is optional: text that the block has to print. So is `exits: 1` (before it): the status of a command
in the block that fails. Further lines of the comment are commands that run first, in the same shell, and that a reader
does not see: they make what the block refers to::

    <!-- check: look at a task, prints: timeline
    id=$(taskflux send simulated hello --json | sed 's/.*"taskId": *"\\([^"]*\\)".*/\\1/')
    -->

A block that is not checked says why, or which test runs it instead::

    <!-- not run: needs a cluster -->
    <!-- run by: tests/integration/http/test_other_clients.py -->

A page whose shell blocks can all not be run says so once, anywhere on it: `<!-- no block runs: needs a cluster -->`.

`<!-- file: my_app/handlers.py -->` stands before a block of any language that the reader saves as that file; `prints:`
is what is printed after that, by what runs in the background.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

FENCE = re.compile(r"^ *```(?P<language>[^\s`]*)[^\n]*\n(?P<body>.*?)^ *```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- *(?P<kind>check|not run|run by|file) *: *(?P<text>.*?)\s*-->", re.DOTALL)
PAGE = re.compile(r"<!-- *no block runs *: *(?P<reason>[^\n]*?) *-->")
# A comment belongs to the fence that follows it, with nothing but blank lines in between.
ABOVE = re.compile(COMMENT.pattern + r"\s*\Z", re.DOTALL)
STEP = re.compile(
    r"(?P<name>[^,\n]+?) *(?:, *exits: *(?P<exits>\d+))? *(?:, *prints: *(?P<prints>[^\n]+?))? *(?:\n(?P<first>.*))?",
    re.DOTALL,
)
# Pages whose checks are of another kind, and the test that runs them.
ELSEWHERE = {"docs/clients.md": "tests/integration/http/test_documented_clients.py"}
SHELLS = ("sh", "bash", "shell", "console")
# What keeps running while the commands after it are tried, as in a second terminal.
SERVES = re.compile(r"^(make run|(\S*/)?taskflux dev)\b")


class BadReadme(Exception):
    """A page has nothing to check, or says it in a way that cannot be followed; the text says what."""


@dataclass(frozen=True, slots=True)
class Block:
    """One checked block: `first` runs before `script`, in the same shell; `exits` is the status of what fails in it."""

    name: str
    script: str
    prints: str | None = None
    first: str = ""
    exits: int = 0


@dataclass(frozen=True, slots=True)
class Saved:
    """A block that the reader saves as the file `path`; `prints`: what a process in the background says to it."""

    path: str
    text: str
    prints: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done before the program serves, the command that serves, and what is done beside it."""

    before: Sequence[Block]
    serve: Block
    beside: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block of a page and the comment right above it: its kind and text, if there is one."""

    line: int
    language: str
    body: str
    kind: str | None
    comment: str


def fences(text: str) -> Iterator[Fence]:
    """The fenced blocks of a page in order."""
    end = 0
    for found in FENCE.finditer(text):
        above = ABOVE.search(text, end, found.start())
        line = text.count("\n", 0, found.start()) + 1
        kind, comment = (above["kind"], above["text"]) if above else (None, "")
        yield Fence(line, found["language"], dedent(found["body"]), kind, comment)
        end = found.end()


def steps(text: str) -> list[Block | Saved]:
    """The checked blocks and the files to save, in order.

    Raises:
        BadReadme: a comment has no block right under it, or a check no `sh` block.
    """
    found = list(fences(text))
    comments, used = len(COMMENT.findall(text)), sum(fence.kind is not None for fence in found)
    if comments != used:
        raise BadReadme(
            f"{comments - used} of {comments} comments (check, not run, run by, file) do not stand right before a ```"
            " block"
        )
    taken: list[Block | Saved] = []
    for fence in found:
        if fence.kind not in ("check", "file"):
            continue
        step = STEP.fullmatch(fence.comment)
        if step is None or (fence.kind == "check" and fence.language not in SHELLS):
            raise BadReadme(f"line {fence.line}: a check is a name, and stands right before a ```sh block")
        if fence.kind == "file":
            taken.append(Saved(step["name"], fence.body, step["prints"]))
        else:
            block = Block(step["name"], fence.body, step["prints"], step["first"] or "", int(step["exits"] or 0))
            taken.append(block)
    return taken


def checked_blocks(text: str) -> list[Block]:
    """The checked blocks in order.

    Raises:
        BadReadme: there is none, or a comment has no `sh` block right under it.
    """
    blocks = [step for step in steps(text) if isinstance(step, Block)]
    if not blocks:
        raise BadReadme("no checked block: put <!-- check: some name --> right before each ```sh block that can run")
    return blocks


def unexplained(text: str, repository: Path) -> list[str]:
    """The shell blocks of a page that have neither a check nor a reason, one sentence each."""
    if page := PAGE.search(text):
        return [] if len(page["reason"].split()) > 1 else [f"“{page['reason']}” is no reason"]
    wrong = []
    for fence in fences(text):
        if fence.language in SHELLS and fence.kind not in ("check", "not run", "run by"):
            wrong.append(f"line {fence.line}: no check, and no reason why it cannot run")
        elif fence.kind == "not run" and len(fence.comment.split()) < 2:
            wrong.append(f"line {fence.line}: “{fence.comment}” is no reason")
        elif fence.kind == "run by" and not (repository / fence.comment).exists():
            wrong.append(f"line {fence.line}: there is no {fence.comment}")
    return wrong


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
    first = Block(block.name, "\n".join(lines[:-1]) + "\n", first=block.first)
    return Plan([*blocks[:at], first], Block(block.name, lines[-1], block.prints), blocks[at + 1 :])
