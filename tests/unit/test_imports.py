"""Imports run one way: tasks ← store, stream, providers ← runtime ← http ← the deployments (handlers/*.py)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "handlers"

BELOW = {
    "tasks": set[str](),
    "store": {"tasks"},
    "stream": {"tasks"},
    "providers": {"tasks"},
    "runtime": {"tasks", "store", "stream", "providers"},
    "http": {"tasks", "store", "stream", "providers", "runtime"},
}
DEPLOYMENT = "a deployment"
BELOW[DEPLOYMENT] = {*BELOW["http"], "http"}
ABOVE_ALL = {"local", "cli"}
# What `import handlers` offers to those who write handlers of their own.
FRONT = "the front page"
BELOW[FRONT] = {"tasks", "providers", "runtime"}

DEPLOYMENTS = {
    "ingest",
    "relay",
    "router",
    "process_email",
    "process_sms",
    "process_simulated",
    "notify",
    "dlq_sink",
}

# A decision takes what it needs as values: tasks/ asks neither the world nor the clock, and tosses no coin.
IMPURE = {
    "aiokafka", "aiosmtplib", "asyncio", "asyncpg", "concurrent", "http", "httpx", "io", "logging", "multiprocessing",
    "os", "pathlib", "random", "redis", "secrets", "shutil", "signal", "socket", "ssl", "starlette", "subprocess",
    "tempfile", "threading", "time", "urllib", "uuid_utils", "uvicorn", "uvloop",
}  # fmt: skip
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "uuid6", "uuid7", "open", "print", "input"}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and where it is imported."""

    module: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(file: Path) -> Iterator[Import]:
    """All of a file's imports, those inside functions too, with relative ones resolved."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, file, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            # `from handlers.tasks import model` imports a module, `from handlers.tasks.model import Task` does not:
            # the layer is the same, except for `from handlers import …`.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "handlers" else [module]
            for name in names:
                yield Import(name, file, node.lineno)


def layer_of_file(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return FRONT if file.name == "__init__.py" else DEPLOYMENT


def layer_of_module(module: str) -> str | None:
    """The layer of one of our modules; None for anybody else's."""
    head, _, rest = module.partition(".")
    if head != "handlers":
        return None
    name = rest.partition(".")[0]
    if (PACKAGE / name).is_dir():
        return name or FRONT
    return DEPLOYMENT if (PACKAGE / f"{name}.py").exists() else FRONT


def wrong_way(file: Path) -> list[Import]:
    """The imports of a file that its layer may not have."""
    layer = layer_of_file(file)
    if layer in ABOVE_ALL:
        return []
    # One deployment does not import another; the packages import within themselves.
    own = set[str]() if layer == DEPLOYMENT else {layer}
    allowed = BELOW[layer] | own
    return [
        found
        for found in imports_of(file)
        if (other := layer_of_module(found.module)) is not None and other not in allowed
    ]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_package_has_its_place_in_the_order() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages == (set(BELOW) | ABOVE_ALL) - {DEPLOYMENT, FRONT}


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    assert [str(found) for found in wrong_way(file)] == []


def test_what_a_task_is_and_what_may_happen_to_it_is_decided_without_io_clock_or_chance() -> None:
    found = [
        str(one)
        for file in sorted((PACKAGE / "tasks").rglob("*.py"))
        for one in imports_of(file)
        if one.module.partition(".")[0] in IMPURE
    ]
    for file in sorted((PACKAGE / "tasks").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in IMPURE_CALLS:
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno} calls {name}")
    assert found == []


def test_every_module_beside_the_packages_is_a_deployment() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules <= DEPLOYMENTS


@pytest.mark.parametrize(
    ("where", "line", "wrong"),
    [
        ("tasks/x.py", "from handlers.store import queries", True),
        ("tasks/x.py", "from ..store.queries import Query", True),
        ("tasks/x.py", "from .model import Task", False),
        ("store/x.py", "import handlers.stream.topics", True),
        ("stream/x.py", "def f():\n    from handlers.runtime import worker", True),
        ("providers/x.py", "from handlers import handler", True),
        ("runtime/x.py", "from handlers.http.app import app", True),
        ("runtime/x.py", "from handlers.local import servers", True),
        ("runtime/x.py", "from handlers.store import pool", False),
        ("x.py", "from handlers.http.app import app", False),
        ("x.py", "from handlers.cli import main", True),
        ("cli/x.py", "from handlers.local import servers", False),
    ],
)
def test_an_import_against_the_order_is_noticed(
    where: str, line: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in {*BELOW, *ABOVE_ALL} - {DEPLOYMENT, FRONT}:
        (tmp_path / "handlers" / package).mkdir(parents=True)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "handlers")
    file = tmp_path / "handlers" / where
    file.write_text(line + "\n")
    assert bool(wrong_way(file)) is wrong
