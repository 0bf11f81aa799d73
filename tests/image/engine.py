"""Containers for tests: an engine that works here, and containers run with a pod's confinement.

::

    engine = find_engine()
    image = build(engine, find_base(engine.program))         # tests.image.building
    with engine.run(image, "run", "ingest", environment={…}) as container:
        …

Containers share the host's network, so that what listens on 127.0.0.1 reaches what listens there, too.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import uuid4

from tests.image.debian import program
from tests.image.unavailable import Unavailable

OWNER = "io.taskflux.test"
"""The label with the id of the process whose container it is."""

COMMAND_TIMEOUT = 120.0
MOST_PROCESSES = 32768


@dataclass(frozen=True, slots=True)
class Confinement:
    """A pod's security context and limits, in an engine's terms. The defaults are what the chart's pods have."""

    user: str = "65532:65532"
    read_only: bool = True
    drop: Sequence[str] = ("ALL",)
    new_privileges: bool = False
    memory: str = "256m"
    processes: int = 100
    tmpfs: Mapping[str, str] = field(default_factory=lambda: {"/tmp": "16m"})
    """mount point → size"""

    def options(self) -> list[str]:
        """For `podman run` and `docker run`; swap would lift the limit of memory."""
        options = ["--user", self.user, "--memory", self.memory, "--pids-limit", str(self.processes)]
        options += [part for capability in self.drop for part in ("--cap-drop", capability)]
        options += [
            part for path, size in self.tmpfs.items() for part in ("--tmpfs", f"{path}:rw,size={size},mode=1777")
        ]
        if self.read_only:
            options += ["--read-only"]
        if not self.new_privileges:
            options += ["--security-opt", "no-new-privileges"]
        return options


CHART = Confinement()


@dataclass(frozen=True, slots=True)
class Container:
    """One that was started. Its output is kept until its block ends."""

    engine: Engine
    name: str

    @property
    def pid(self) -> int:
        """Of its first process, as the host sees it; 0 when it has ended."""
        return int(self._inspect("{{.State.Pid}}"))

    @property
    def running(self) -> bool:
        return self._inspect("{{.State.Running}}") == "true"

    def logs(self) -> str:
        """All that it wrote, to both streams."""
        done = self.engine.do("logs", self.name)
        return done.stdout + done.stderr

    def stop(self, seconds: int = 30) -> int:
        """SIGTERM, SIGKILL after `seconds`; the exit code: 137 when it had to be killed."""
        self.engine.do("stop", "--time", str(seconds), self.name, timeout=seconds + COMMAND_TIMEOUT)
        return int(self._inspect("{{.State.ExitCode}}"))

    def kill(self) -> None:
        """`kill -9`."""
        self.engine.do("kill", "--signal", "KILL", self.name)

    def execute(self, *command: str) -> str:
        """Run a command inside, as its user, in the same confinement; its output."""
        return self.engine.do("exec", self.name, *command).stdout

    def _inspect(self, template: str) -> str:
        return self.engine.do("inspect", "--format", template, self.name).stdout.strip()


@dataclass(frozen=True, slots=True)
class Engine:
    """podman, or docker with its daemon."""

    program: str

    @property
    def name(self) -> str:
        return Path(self.program).name

    def do(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run one command of the engine's to its end; AssertionError with its words when it fails."""
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{self.name} {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
        return done

    def output(
        self,
        image: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        confinement: Confinement = CHART,
        entrypoint: str | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> str:
        """Run a container to its end; what it wrote to standard output. AssertionError when it fails."""
        options = self._options(environment, confinement, entrypoint, mounts)
        return self.do("run", "--rm", *options, image, *arguments).stdout

    @contextmanager
    def run(
        self,
        image: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        confinement: Confinement = CHART,
        entrypoint: str | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> Iterator[Container]:
        """Start a container; when the block ends it is removed, running or not.

        Args:
            mounts: files and directories of the host → where they are inside, read-only.
        """
        name = f"taskflux-test-{uuid4().hex[:12]}"
        options = self._options(environment, confinement, entrypoint, mounts)
        try:
            # As in a pod the host's name is its own: workers are told apart by it.
            self.do("run", "--detach", "--name", name, "--hostname", name, *options, image, *arguments)
            yield Container(self, name)
        finally:
            # Unchecked: where it could not even be made, that is the error to see.
            remove = [self.program, "rm", "--force", "--volumes", name]
            subprocess.run(remove, capture_output=True, timeout=COMMAND_TIMEOUT, check=False)

    def sweep(self) -> None:
        """Remove the containers of test runs that were killed."""
        listed = self.do(
            "ps", "--all", "--filter", f"label={OWNER}", "--format", f'{{{{.ID}}}} {{{{.Label "{OWNER}"}}}}'
        )
        for line in listed.stdout.splitlines():
            container, _, owner = line.partition(" ")
            if not Path("/proc", owner).exists():
                self.do("rm", "--force", "--volumes", container)

    def _options(
        self,
        environment: Mapping[str, str] | None,
        confinement: Confinement,
        entrypoint: str | None,
        mounts: Mapping[Path, str] | None,
    ) -> list[str]:
        options = ["--network", "host", "--pull", "never", "--label", f"{OWNER}={os.getpid()}", *confinement.options()]
        options += [part for pair in (environment or {}).items() for part in ("--env", "=".join(pair))]
        options += [part for path, at in (mounts or {}).items() for part in ("--volume", f"{path}:{at}:ro")]
        if entrypoint is not None:
            options += ["--entrypoint", entrypoint]
        if self.name == "podman":
            # It would make /run and /var/tmp writable as well, which they are not in a pod.
            options += ["--read-only-tmpfs=false"] if confinement.read_only else []
            options += _rlimits()
        return options


@cache
def find_engine() -> Engine:
    """docker where its daemon answers, else podman, which root on Debian gets installed.

    Raises:
        Unavailable: there is none; the text says what to install.
    """
    docker = shutil.which("docker")
    if docker is not None and _succeeds([docker, "version"]):
        engine = Engine(docker)
    else:
        engine = Engine(program("podman", "podman", "buildah", "runc"))
        if not _succeeds([engine.program, "info"]):
            raise Unavailable(f"{engine.program} info fails here: a container engine is needed that works")
    engine.sweep()
    return engine


def _rlimits() -> list[str]:
    """No more than we have: podman asks for a million files, which may be refused even to root."""
    options = []
    for name, limit, most in (
        ("nofile", resource.RLIMIT_NOFILE, 1 << 20),
        ("nproc", resource.RLIMIT_NPROC, MOST_PROCESSES),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(hard, most)
        options += ["--ulimit", f"{name}={allowed}:{allowed}"]
    return options


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
