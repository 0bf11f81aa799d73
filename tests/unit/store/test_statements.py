from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.resources import files

import pytest

from taskflux.store.database import Database, Statement, parse, statements
from taskflux.store.errors import StoreUnavailable
from taskflux.store.settings import PostgresSettings
from tests.statements import every_statement

FILE = """\
-- A head; it belongs to no statement: with :this, too.

-- name: first
-- Its comment, about :nothing.
SELECT :b::text, ':c', "d:e", x::uuid[], f(a := :a), :b  -- and :f
FROM t;

-- A section

-- name: second
DELETE FROM t;
"""


def test_a_parameter_has_one_position_however_often_it_occurs() -> None:
    first = parse(FILE)["first"]
    assert first.parameters == ("b", "a")
    assert first.text.splitlines()[1:] == [
        """SELECT $1::text, ':c', "d:e", x::uuid[], f(a := $2), $1  -- and :f""",
        "FROM t",
    ]


def test_a_statement_keeps_its_own_comment_and_no_other() -> None:
    assert parse(FILE)["first"].text.startswith("-- Its comment")
    assert parse(FILE)["second"] == Statement("second", "DELETE FROM t", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-- name: a\nSELECT 1\n", "no ;"),
        ("-- name: a\nSELECT 1\n\n-- name: b\nSELECT 1;\n", "no ;"),
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n", "same name"),
        ("-- name: a\nSELECT $1;\n", r"without a name: \$1"),
    ],
)
def test_an_invalid_file_is_refused_when_it_is_read(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


async def test_arguments_are_given_by_name_and_must_be_complete() -> None:
    first, database = parse(FILE)["first"], Database(PostgresSettings(), name="not open")
    with pytest.raises(TypeError, match="first takes b, a, not a, c"):
        await database.fetch(first, a=1, c=2)
    with pytest.raises(TypeError, match="first takes b, a, not a, b, c"):
        await database.fetch(first, a=1, b=2, c=3)
    with pytest.raises(StoreUnavailable):
        await database.fetch(first, a=1, b=2)


MODULES = sorted(
    file.name.removesuffix(".sql") for file in files("taskflux.store").iterdir() if file.name[-4:] == ".sql"
)


def calls(module: str) -> Iterator[tuple[str, set[str], bool]]:
    """Statements that a module runs by their names, with what it gives them by name, and whether that is all."""
    source = files("taskflux.store").joinpath(f"{module}.py").read_text(encoding="utf-8")
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args):
        match call.args[0]:
            case ast.Subscript(value=ast.Name(id="SQL"), slice=ast.Constant(value=str(name))):
                given = {keyword.arg for keyword in call.keywords}
                yield name, {each for each in given if each is not None}, None not in given


@pytest.mark.parametrize("module", MODULES)
def test_a_module_gives_its_statements_their_parameters(module: str) -> None:
    for name, given, complete in calls(module):
        takes = set(statements(module)[name].parameters)
        assert given == takes if complete else given < takes, name


@pytest.mark.parametrize("module", MODULES)
def test_a_module_runs_every_statement_of_its_file(module: str) -> None:
    source = files("taskflux.store").joinpath(f"{module}.py").read_text(encoding="utf-8")
    constants = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert statements(module).keys() <= constants


def test_no_two_statements_have_the_same_name() -> None:
    assert len(every_statement()) == sum(len(statements(module)) for module in MODULES)
