"""What the chart renders as containers of an engine: each under its own security context, limits and mounts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.chart.containers import Container, quantity
from tests.chart.launching import Running
from tests.image.engine import Confinement, Engine
from tests.image.engine import Container as Started

WAIT_TIMEOUT = 600.0


def confinement(container: Container) -> Confinement:
    """A rendered container's, with nothing filled in: what the chart does not say is not confined."""
    context: Mapping[str, Any] = {**container.pod.spec["securityContext"], **container.spec["securityContext"]}
    return Confinement(
        user=f"{context['runAsUser']}:{context['runAsGroup']}",
        read_only=context["readOnlyRootFilesystem"],
        drop=tuple(context["capabilities"]["drop"]),
        new_privileges=context["allowPrivilegeEscalation"],
        memory=str(quantity(container.spec["resources"]["limits"]["memory"])),
        tmpfs={path: str(size) for path, size in container.scratch.items()},
    )


class ContainerLauncher:
    """Runs rendered containers from the images that they name. Use it as a context: its end removes them."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        """`directory` is for what is mounted; every user may read what is below it."""
        self._engine = engine
        self._directory = directory
        self._stack = ExitStack()
        self._started = 0

    def start(self, container: Container) -> Running:
        self._started += 1
        running = self._engine.run(
            container.image,
            *container.command[1:],
            *container.args,
            environment=container.environment,
            confinement=confinement(container),
            entrypoint=container.command[0] if container.command else None,
            mounts=self._mounts(container),
        )
        return _Running(container, self._stack.enter_context(running))

    def _mounts(self, container: Container) -> Mapping[Path, str]:
        directory = self._directory / str(self._started)
        mounts = {}
        for path, content in container.files.items():
            file = directory / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            mounts[file] = path
        return mounts

    def __enter__(self) -> ContainerLauncher:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class _Running:
    """A container as `tests.chart.launching.Running`."""

    def __init__(self, rendered: Container, started: Started) -> None:
        self._rendered = rendered
        self._started = started

    @property
    def name(self) -> str:
        return f"{self._rendered.pod.owner.name}/{self._rendered.name}"

    @property
    def returncode(self) -> int | None:
        if self._started.running:
            return None
        template = "{{.State.ExitCode}}"
        return int(self._started.engine.do("inspect", "--format", template, self._started.name).stdout)

    async def wait(self) -> int:
        ended = await asyncio.to_thread(self._started.engine.do, "wait", self._started.name, timeout=WAIT_TIMEOUT)
        return int(ended.stdout)

    def terminate(self) -> None:
        self._started.engine.do("kill", "--signal", "TERM", self._started.name)

    def kill(self) -> None:
        if self._started.running:
            self._started.kill()

    def output(self) -> str:
        return self._started.logs()
