"""Imports run one way, without a circle, neither between packages nor inside one.

tasks, telemetry ← store, stream, providers ← worker ← upkeep ← http ← cli, local and the deployments (handlers/)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "taskflux"
DEPLOYMENTS = "handlers"

_GROUND = {"tasks", "telemetry"}
_OUTSIDE = {*_GROUND, "store", "stream", "providers"}
BELOW: Mapping[str, set[str]] = {
    "tasks": set(),
    "telemetry": {"tasks"},
    "store": _GROUND,
    "stream": _GROUND,
    "providers": _GROUND,
    "worker": _OUTSIDE,
    "upkeep": {*_OUTSIDE, "worker"},
    "http": {*_OUTSIDE, "worker", "upkeep"},
    "local": {*_OUTSIDE, "worker", "upkeep", "http"},
    "cli": {*_OUTSIDE, "worker", "upkeep", "http", "local"},
    DEPLOYMENTS: {*_OUTSIDE, "worker", "upkeep", "http"},
    # What `import taskflux` offers to those who write handlers of their own.
    LIBRARY: {"tasks", "providers", "worker"},
    "testing": {*_OUTSIDE, "worker"},
    "__main__": {"cli", "worker"},
    "version": set(),
    "endpoints": set(),
    "secrets": set(),
}
ANYONE_MAY_IMPORT = {"version", "endpoints", "secrets"}
NAMES = {
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
        return f"{self.file}:{self.line} imports {self.module}"


class Sources:
    """All modules of ours below a folder, by the names they are imported under."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, Path] = {}
        for top, prefix in ((LIBRARY, ""), (DEPLOYMENTS, f"{LIBRARY}.")):
            for file in sorted((root / top).rglob("*.py")):
                parts = file.relative_to(root).with_suffix("").parts
                self.files[prefix + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file

    def imports(self, name: str) -> Iterator[Import]:
        """What the module imports, inside functions too, with relative imports resolved."""
        file = self.files[name]
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, file.relative_to(self.root), node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
                module = ".".join(filter(None, (start, node.module)))
                for alias in node.names:
                    full = f"{module}.{alias.name}"
                    yield Import(full if full in self.files else module, file.relative_to(self.root), node.lineno)

    def own(self, name: str) -> set[str]:
        """The modules of ours that the module imports when it is loaded or later, but not for its types alone."""
        return {found.module for found in self.imports(name) if found.module in self.files} - {name}


def layer(module: str) -> str | None:
    """The layer of one of our modules; None for all others."""
    head, _, rest = module.partition(".")
    return (rest.partition(".")[0] or LIBRARY) if head == LIBRARY else None


def against_the_order(sources: Sources, name: str) -> list[Import]:
    """The imports of a module that its layer may not have."""
    own = layer(name)
    assert own is not None
    # One deployment does not import another; the packages import within themselves.
    allowed = BELOW[own] | ANYONE_MAY_IMPORT | ({own} if own != DEPLOYMENTS else set())
    return [
        found for found in sources.imports(name) if (other := layer(found.module)) is not None and other not in allowed
    ]


def circle(sources: Sources) -> list[str]:
    """The first circle of modules that import each other; empty where there is none."""
    # A package's __init__ and the modules below it are loaded together: what it offers is not what they import.
    graph = {name: {other for other in sources.own(name) if not name.startswith(f"{other}.")} for name in sources.files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


SOURCES = Sources(ROOT)


def test_every_package_has_its_place_in_the_order() -> None:
    assert {layer(name) for name in SOURCES.files} == set(BELOW)


@pytest.mark.parametrize("name", sorted(SOURCES.files))
def test_imports_run_one_way(name: str) -> None:
    assert [str(found) for found in against_the_order(SOURCES, name)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(SOURCES) == []


def test_what_a_task_is_and_what_may_happen_to_it_is_decided_without_io_clock_or_chance() -> None:
    pure = [name for name in SOURCES.files if layer(name) == "tasks"]
    assert len(pure) > 1
    found = [str(one) for name in pure for one in SOURCES.imports(name) if one.module.partition(".")[0] in IMPURE]
    for name in pure:
        file = SOURCES.files[name]
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in IMPURE_CALLS:
                    found.append(f"{file}:{node.lineno} calls {called}")
    assert found == []


def test_handlers_holds_the_deployments_and_nothing_else() -> None:
    assert {path.stem for path in (ROOT / DEPLOYMENTS).rglob("*.py")} == {*NAMES, "__init__"}


@pytest.mark.parametrize(
    ("where", "line", "wrong"),
    [
        ("taskflux/tasks/x.py", "from taskflux.store import queries", True),
        ("taskflux/tasks/x.py", "from ..store.database import Statement", True),
        ("taskflux/tasks/x.py", "from .model import Task", False),
        ("taskflux/telemetry/x.py", "from taskflux.stream import topics", True),
        ("taskflux/store/x.py", "import taskflux.stream.topics", True),
        ("taskflux/store/x.py", "from taskflux.telemetry import metrics", False),
        ("taskflux/stream/x.py", "def f():\n    from taskflux.worker import worker", True),
        ("taskflux/providers/x.py", "from taskflux import handler", True),
        ("taskflux/worker/x.py", "from taskflux.upkeep import leader", True),
        ("taskflux/worker/x.py", "from taskflux.http.app import app", True),
        ("taskflux/worker/x.py", "from taskflux.local import servers", True),
        ("taskflux/worker/x.py", "from taskflux.store import pool", False),
        ("taskflux/cli/x.py", "from taskflux.local import servers", False),
        ("taskflux/cli/x.py", "from taskflux.handlers.ingest import ingest", True),
        ("handlers/x.py", "from taskflux.http.app import app", False),
        ("handlers/x.py", "from taskflux.handlers.ingest import ingest", True),
        ("handlers/x.py", "from taskflux.cli import main", True),
    ],
)
def test_an_import_against_the_order_is_noticed(where: str, line: str, wrong: bool, tmp_path: Path) -> None:
    file = tmp_path / where
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    sources = Sources(tmp_path)
    (name,) = sources.files
    assert bool(against_the_order(sources, name)) is wrong


def test_a_circle_is_noticed_inside_a_package_and_inside_a_function(tmp_path: Path) -> None:
    package = tmp_path / "taskflux/store"
    package.mkdir(parents=True)
    (package / "a.py").write_text("from taskflux.store.b import B\n")
    (package / "b.py").write_text("def f():\n    from taskflux.store import c\n")
    (package / "c.py").write_text("from .a import A\n")
    assert set(circle(Sources(tmp_path))) == {f"taskflux.store.{name}" for name in "abc"}
