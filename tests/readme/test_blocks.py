"""Which commands of a README are checked, and what is said about one that cannot be."""

from __future__ import annotations

import pytest

from tests.readme.blocks import BadReadme, checked_blocks, plan

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
    steps = plan(checked_blocks(README))
    assert [block.script for block in steps.before] == ["git clone https://example.org/taskflux\ncd taskflux\n"]
    assert steps.serve.script == "make run"
    assert [block.name for block in steps.beside] == ["submit"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# nothing\n```sh\nmake run\n```\n", "no checked block"),
        ("<!-- check: a -->\nprose\n```sh\nmake run\n```\n", "stand right before"),
        ("<!-- check: a -->\n```sh\nmake test\n```\n", "one is needed"),
        ("<!-- check: a -->\n```sh\nmake run\ncurl x\n```\n", "put them in another"),
    ],
)
def test_a_readme_that_cannot_be_checked_is_told_why(text: str, sentence: str) -> None:
    with pytest.raises(BadReadme, match=sentence):
        plan(checked_blocks(text))
