from __future__ import annotations

from pathlib import Path

import pytest

from taskflux.local.sources import Sources, syntax_error


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / ".venv" / "lib" / "handlers"  # where a package may well be installed
    root.mkdir(parents=True)
    return root


@pytest.mark.parametrize("name", ["ingest.py", "store/tasks.sql", "http/docs.html", "new/module.py"])
def test_a_source_counts_wherever_its_package_stands(name: str, root: Path) -> None:
    assert Sources([root]).has(root / name)


@pytest.mark.parametrize(
    "name",
    [
        "__pycache__/ingest.cpython-311.pyc",
        "ingest.pyc",
        "ingest.py~",
        ".ingest.py.swp",
        ".#ingest.py",
        "4913",
        "ingest.py.tmp",
        ".git/index.lock",
        ".cache/x.py",
    ],
)
def test_what_editors_and_interpreters_leave_does_not_count(name: str, root: Path) -> None:
    assert not Sources([root]).has(root / name)


def test_beside_a_single_module_nothing_else_counts(tmp_path: Path) -> None:
    sources = Sources([tmp_path / "app.py"])
    assert sources.has(tmp_path / "app.py")
    assert not sources.has(tmp_path / "other.py")
    assert not sources.has(tmp_path / "app" / "x.py")


@pytest.mark.parametrize(
    ("source", "says"),
    [(b"x = (\n", "x.py, line 1: '(' was never closed"), (b"def f(:\n", "x.py, line 1: "), (b"x = 1\0", "x.py")],
)
def test_a_syntax_error_is_reported_with_its_line(source: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_bytes(source)
    assert says in (syntax_error(tmp_path / "x.py") or "")


def test_a_valid_or_missing_python_file_and_any_other_file_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("from __future__ import annotations\nx: int = nowhere\n")
    (tmp_path / "x.sql").write_text("SELECT (")
    assert [syntax_error(tmp_path / name) for name in ("x.py", "x.sql", "gone.py")] == [None, None, None]
