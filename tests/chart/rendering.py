"""`helm template` as a function: values in, typed objects out, each rendering done once a session."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.chart import tools
from tests.chart.objects import Object

CHART: Final = Path(__file__).parents[2] / "charts" / "taskflux"
CI: Final = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE: Final = "tf"
NAMESPACE: Final = "work"

Values = Mapping[str, Any]


class Refused(Exception):
    """Helm would not render these values; the text is what it said."""


@dataclass(frozen=True)
class Rendering:
    """What one release would put into the cluster, in helm's order; hooks and tests among it."""

    objects: Sequence[Object]

    def of(self, *kinds: str) -> Sequence[Object]:
        """All objects of these kinds."""
        return [each for each in self.objects if each.kind in kinds]

    def one(self, kind: str, name: str) -> Object:
        """The object of this kind and name.

        Raises:
            LookupError: there is none, or there are two; the text names those of the kind.
        """
        found = [each for each in self.of(kind) if each.name == name]
        if len(found) != 1:
            raise LookupError(f"{len(found)} {kind} {name!r} among {[each.name for each in self.of(kind)]}")
        return found[0]

    def names(self) -> set[tuple[str, str]]:
        """(kind, name) of all."""
        return {(each.kind, each.name) for each in self.objects}

    def handler(self, kind: str, handler: str) -> Object | None:
        """The object of this kind that belongs to a handler, by its component label."""
        found = [each for each in self.of(kind) if each.labels.get("app.kubernetes.io/component") == handler]
        if len(found) > 1:
            raise LookupError(f"{len(found)} {kind} belong to {handler}: {[each.name for each in found]}")
        return found[0] if found else None


def render(
    *values: Values | Path, release: str = RELEASE, namespace: str = NAMESPACE, chart: Path = CHART
) -> Rendering:
    """What `helm template` makes of these values, the later ones on top. Shared by all callers: do not change it.

    Raises:
        Refused: the schema or a template refused them.
    """
    return _rendering(_key(values), release, namespace, str(chart))


def notes(*values: Values | Path, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
    """NOTES.txt as an install would print it.

    Raises:
        Refused: see `render`.
    """
    text = _helm("install", release, str(CHART), "--namespace", namespace, "--dry-run=client", values=_key(values))
    head, mark, tail = text.partition("\nNOTES:\n")
    if not mark:
        raise LookupError(f"helm printed no notes: {head[-500:]}")
    return tail


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; its exit status is the caller's to judge. No cluster is asked, no file outside the chart is read."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent/kubeconfig"}
    return subprocess.run(
        [str(tools.helm()), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def merged(*values: Values) -> dict[str, Any]:
    """These values, the later ones on top, as helm merges them: maps key by key, everything else replaced."""
    result: dict[str, Any] = {}
    for each in values:
        for key, value in each.items():
            old = result.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            result[key] = merged(old, value) if both and old is not None else value
    return result


def defaults() -> dict[str, Any]:
    """values.yaml."""
    return load_values(CHART / "values.yaml")


def load_values(path: Path) -> dict[str, Any]:
    """A file of values."""
    loaded: dict[str, Any] = yaml.load(path.read_text(), _Strict) or {}
    return loaded


def _key(values: Sequence[Values | Path]) -> tuple[str, ...]:
    """What a rendering is remembered by: paths as they are, values as JSON (which helm reads: JSON is YAML)."""
    return tuple(str(each) if isinstance(each, Path) else json.dumps(each) for each in values)


@cache
def _rendering(values: tuple[str, ...], release: str, namespace: str, chart: str) -> Rendering:
    return Rendering(list(_objects(_helm("template", release, chart, "--namespace", namespace, values=values))))


def _helm(*arguments: str, values: tuple[str, ...]) -> str:
    options: list[str] = []
    with tempfile.TemporaryDirectory(prefix="taskflux-values-") as directory:
        for number, each in enumerate(values):
            file = Path(each)
            if each.startswith("{"):
                file = Path(directory) / f"{number}.yaml"
                file.write_text(each)
            options += ["--values", str(file)]
        done = helm(*arguments, *options)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    return done.stdout


def _objects(text: str) -> Iterator[Object]:
    for document in yaml.load_all(text, _Strict):
        if document is not None:
            yield Object(document)


class _Strict(yaml.CSafeLoader):
    """YAML in which a key that stands twice is an error: helm and the API server would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
