"""Which commands of a page are checked, and what is said about one that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.readme.blocks import BadReadme, Block, Saved, checked_blocks, plan, steps, unexplained

ROOT = Path(__file__).parents[2]
README = """# Quick start
<!-- check: start -->
```sh
git clone https://example.org/taskflux
cd taskflux
make run
```
prose
```sh
not checked
```
<!-- check: submit, prints: "taskId" -->

```sh
curl -s localhost:8080/tasks \\
  -d '{}'
```
"""


def test_blocks_under_a_comment_are_taken_in_order_with_what_they_print() -> None:
    blocks = checked_blocks(README)
    assert [(block.name, block.prints) for block in blocks] == [("start", None), ("submit", '"taskId"')]
    assert "not checked" not in "".join(block.script for block in blocks)


def test_the_command_that_serves_is_split_from_those_before_and_beside_it() -> None:
    split = plan(checked_blocks(README))
    assert [block.script for block in split.before] == ["git clone https://example.org/taskflux\ncd taskflux\n"]
    assert split.serve.script == "make run"
    assert [block.name for block in split.beside] == ["submit"]


def test_a_check_may_have_hidden_commands_and_a_status_and_stand_in_a_list() -> None:
    page = "1. See:\n\n   <!-- check: look, exits: 1, prints: dead\n   id=1\n   -->\n   ```sh\n   get $id\n   ```\n"
    assert steps(page) == [Block("look", "get $id\n", "dead", "   id=1", 1)]


def test_a_file_that_the_reader_saves_is_a_step_between_the_commands() -> None:
    page = "<!-- file: my_app/handlers.py, prints: started again -->\n```python\nx = 1\n```\n"
    assert steps(page) == [Saved("my_app/handlers.py", "x = 1\n", "started again")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# nothing\n```sh\nmake run\n```\n", "no checked block"),
        ("<!-- check: a -->\nprose\n```sh\nmake run\n```\n", "stand right before"),
        ("<!-- check: a -->\n```python\nmake run\n```\n", "stands right before"),
        ("<!-- check: a -->\n```sh\nmake test\n```\n", "one is needed"),
        ("<!-- check: a -->\n```sh\nmake run\ncurl x\n```\n", "put them in another"),
    ],
)
def test_an_invalid_readme_is_refused_with_the_reason(text: str, sentence: str) -> None:
    with pytest.raises(BadReadme, match=sentence):
        plan(checked_blocks(text))


@pytest.mark.parametrize(
    "comment",
    [
        "<!-- check: a name -->",
        "<!-- not run: needs a cluster -->",
        "<!-- run by: tests/readme/test_blocks.py -->",
        "<!-- no block runs: needs a cluster -->\n\nprose\n",
    ],
)
def test_a_shell_block_with_a_check_or_a_reason_is_explained(comment: str) -> None:
    assert unexplained(f"{comment}\n```sh\nhelm install\n```\n", ROOT) == []


@pytest.mark.parametrize(
    "comment",
    ["", "<!-- not run: no -->", "<!-- run by: tests/nowhere.py -->", "<!-- no block runs: no -->", "<!-- file: a -->"],
)
def test_a_shell_block_without_a_check_or_a_reason_is_named(comment: str) -> None:
    assert len(unexplained(f"{comment}\n```sh\nhelm install\n```\n", ROOT)) == 1
