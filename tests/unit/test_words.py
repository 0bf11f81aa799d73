"""Plain technical English: what CONTRIBUTING.md's table of words replaces stands in no text that a person reads."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

REPLACED: Final = {
    r"mend(s|ed|ing|able)?": "fix, repair, correct",
    r"(ran|had run|has run|have run) out(?! of)|leases? (run|runs) out": "expired",
    r"ended by somebody": "expired",
    r"hand(s|ed|ing)? back": "release",
    r"park(s|ed|ing)?": "hold (a task), pause (a queue)",
    r"adopt(s|ed|ing|ion|ions)?": "accept, register",
    r"what (is|was|are|were) due|ow(e|es|ed|ing)": "outbox row, pending publish; Kafka will (not) deliver",
    r"(?<!dead )letters?": "dead letter, message",
    r"shel(f|ves)|desks?": "dead-letter queue",
    r"(is|are|was|were|be|been|being|stays?|goes|went|while|still) (away|gone)": "unreachable, removed, disconnected",
    r"that (is|are|was|were) (?-i:none)": "not supported, invalid, missing",
    r"(is|are|was|were) not told": "is not reported, does not know",
}
"""What is not written, and what is instead."""

EXCEPT: Final = (
    ("CONTRIBUTING.md", r"^\| .* \| .* \|$|^- \"", "the table of words, and its examples"),
    ("tests/unit/test_words.py", "", "the words themselves"),
    ("taskflux/store/migrations/*", "", "a migration stays as it was applied"),
    (
        "*",
        r"(only|of|or|three|capital|lower-case|two) letters|letters (and|or|of)\b|letters?, digits?",
        "of an alphabet",
    ),
)
"""In which files, in which paragraphs, and why."""

FILES: Final = [
    *("*.md", "*.py", "*.sql", "*.yaml", "*.yml", "*.toml", "*.tpl", "*.txt", "*.html"),
    *("Makefile", "Dockerfile", ".ci/run", "image/build", "requirements/lock", ".github/release-names"),
]

NAME: Final = re.compile(r"``.*?``|`[^`]*`|\S*/\S*|\S*\w[_-]\w\S*|\{[^}]*\}|:\w+|\bname: \w+")
"""Names are left aside: of the API, metrics and settings (`handed-back`, the table `parked`), of files and of code."""
TABLE_OR_ITEM: Final = re.compile(r"\s*(\||[-*] |\d+\. |#)")

Paragraphs = Iterator[tuple[int, str]]


def tracked(*patterns: str) -> list[str]:
    """The files that git knows, and that are there."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def joined(lines: Iterable[tuple[int, str]]) -> Paragraphs:
    """Paragraphs from lines: a word may be at the end of one and the next at the beginning of another."""
    first, before, parts = 0, 0, list[str]()
    for number, line in lines:
        if parts and (number != before + 1 or not line.strip() or TABLE_OR_ITEM.match(line)):
            yield first, " ".join(parts)
            parts = []
        if line.strip():
            first = first if parts else number
            parts.append(line.strip())
        before = number
    if parts:
        yield first, " ".join(parts)


def document(text: str) -> Paragraphs:
    return joined(enumerate(text.splitlines(), 1))


def comments(text: str) -> Paragraphs:
    """Of YAML, SQL, shell and templates: what stands behind `#` or `--`, between `/*` and `*/`, `<!--` and `-->`."""
    behind = re.compile(r"(?:^|\s)(?:#|--)\s(.*)")
    yield from joined(
        (number, found[1]) for number, line in enumerate(text.splitlines(), 1) if (found := behind.search(line))
    )
    for block in re.finditer(r"/\*(.*?)\*/|<!--(.*?)-->", text, re.DOTALL):
        first = text.count("\n", 0, block.start())
        yield from ((first + number, part) for number, part in document(block[1] or block[2] or ""))


def python(text: str) -> Paragraphs:
    """Comments, docstrings, messages (texts with a space) and the names of tests."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from joined((each.start[0], each.string.lstrip("#: ")) for each in tokens if each.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            read = python if is_python(node.value) else document
            if not is_sql(node.value):
                yield from ((node.lineno + number - 1, part) for number, part in read(node.value))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")


def html(text: str) -> Paragraphs:
    """What the page shows, and the messages of its scripts."""
    blank = partial(re.sub, r"[^\n]", " ")
    shown = re.sub(r"<(style|script)\b.*?</\1>", lambda found: blank(found[0]), text, flags=re.DOTALL)
    yield from document(re.sub(r"<[^>]*>", lambda found: blank(found[0]), shown))
    yield from quoted(re.sub(r"<style\b.*?</style>", lambda found: blank(found[0]), text, flags=re.DOTALL))


def is_python(text: str) -> bool:
    """Whether a text is a module of Python, as a test writes one for a handler."""
    if "import " not in text:
        return False
    try:
        return any(isinstance(each, ast.Import | ast.ImportFrom) for each in ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def is_sql(text: str) -> bool:
    return re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|TRUNCATE|WITH|ALTER|CREATE|DROP)\b", text) is not None


def quoted(text: str) -> Paragraphs:
    """Comments, and the messages of templates and YAML: texts in quotation marks with a space in them."""
    yield from comments(text)
    for number, line in enumerate(text.splitlines(), 1):
        yield from ((number, said) for said in re.findall(r'"([^"]*)"', line) if " " in said)


READERS: Final[dict[str, Callable[[str], Paragraphs]]] = {
    ".md": document,
    ".txt": document,
    ".html": html,
    ".py": python,
    ".tpl": quoted,
    ".yaml": quoted,
}
"""By the end of a file's name; any other has comments."""


def faults(name: str, text: str) -> Iterator[str]:
    """Where a text has a replaced word, and what to write."""
    for number, paragraph in READERS.get(Path(name).suffix, comments)(text):
        if any(Path(name).match(path) and re.search(allowed, paragraph, re.IGNORECASE) for path, allowed, _ in EXCEPT):
            continue
        plain = NAME.sub("…", paragraph)
        for word, better in REPLACED.items():
            if found := re.search(rf"\b(?:{word})\b", plain, re.IGNORECASE):
                yield f"{name}:{number}: “{found[0]}”, better: {better}"


@pytest.mark.parametrize("files", FILES)
def test_no_replaced_word_stands_in_a_text(files: str) -> None:
    names = tracked(files)
    assert names
    found = [fault for name in names for fault in faults(name, (ROOT / name).read_text(encoding="utf-8"))]
    assert found == [], "\n".join(["see CONTRIBUTING.md, How we write text", *found])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "A page about a\n\nlease that has\nrun out"),
        ("page.md", "| what | how |\n|---|---|\n| the broker is away | wait |"),
        ("code.py", '"""A record of another producer is adopted."""\n'),
        ("code.py", "x = 1  # who holds it hands\n# back what it holds\n"),
        ("code.py", 'raise ValueError(f"{x} is a letter")\n'),
        ("test_code.py", "async def test_a_parked_task_waits() -> None: ...\n"),
        ("statement.sql", "SELECT 1; -- what is due, in order\n"),
        ("Makefile", "# until it is mended\n"),
        ("values.yaml", "key: 1  # the server is gone\n"),
        ("_checks.tpl", '{{- fail "the key that is none" -}}\n'),
        ("_checks.tpl", "{{/*\nWhat Kafka owes.\n*/}}\n"),
    ],
)
def test_a_replaced_word_is_noticed(name: str, text: str) -> None:
    assert len(list(faults(name, text))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "page.md",
            "It is `handed-back`, says the timeline; the table `parked` holds dead letters, and one dead\nletter more.",
        ),
        ("code.py", 'letter = "parked"\nLETTERS = "SELECT * FROM parked WHERE letter = 1"\n'),
        ("code.py", '"""It has run out of memory; anything that is None stays."""\n'),
        ("statement.sql", "SELECT * FROM parked; -- the tasks that are held\n"),
    ],
)
def test_names_and_other_meanings_are_left_alone(name: str, text: str) -> None:
    assert list(faults(name, text)) == []
