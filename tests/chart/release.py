"""A release on this machine: what helm and the kubelet would run of a rendering, and in which order."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from tests.chart.containers import Container, Outside, containers
from tests.chart.launching import Launcher, Running, finished, probed, stopped
from tests.chart.objects import Object, PodTemplate, selects
from tests.chart.rendering import NAMESPACE, Rendering

_SERVICE_URL = re.compile(r"(?<=://)([a-z0-9-]+)((?:\.[a-z0-9-]+)*)(?::(\d+))?(?=[/?#]|$)")
_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Part:
    """A handler's container that runs."""

    container: Container
    running: Running

    @property
    def url(self) -> str:
        """Where its API answers; of a handler without one, its probes and metrics."""
        ports = {port["name"] for port in self.container.spec["ports"]}
        return f"http://{_ADDRESS}:{self.container.port('http' if 'http' in ports else 'management')}"

    @property
    def management(self) -> str:
        """Where its probes and metrics answer."""
        return f"http://{_ADDRESS}:{self.container.port(self.container.spec['livenessProbe']['httpGet']['port'])}"

    @property
    def grace(self) -> float:
        """Seconds between the kubelet's SIGTERM and its SIGKILL."""
        return float(self.container.pod.spec["terminationGracePeriodSeconds"])


@dataclass
class Release:
    """Use it as a context: what was started is killed at its end."""

    rendering: Rendering
    outside: Outside
    launcher: Launcher
    _started: list[Running] = field(default_factory=list)

    async def hooks(self, moment: str) -> Sequence[str]:
        """Run the Jobs of this moment as helm does, the lightest first; what each wrote.

        Raises:
            AssertionError: one failed.
        """
        jobs = [each for each in self.rendering.of("Job", "Pod") if moment in each.hooks]
        return [await self.to_the_end(job) for job in sorted(jobs, key=lambda job: (job.weight, job.name))]

    async def to_the_end(self, owner: Object) -> str:
        """Run a pod of `owner`, container after container, and see each end well; what they wrote.

        Raises:
            AssertionError: a container failed.
        """
        return "".join([await finished(self._start(each)) for each in self._containers(_pod(owner))])

    async def start(self, handler: str) -> Part:
        """Run a handler's pod until its own probes say that it is started and ready.

        Raises:
            AssertionError: it ended, or they never do.
        """
        deployment = self.rendering.handler("Deployment", handler)
        if deployment is None:
            raise LookupError(f"no Deployment belongs to {handler!r}")
        pod = _pod(deployment)
        *before, container = self._containers(pod)
        for each in before:
            await finished(self._start(each))
        running = self._start(container)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            await probed(container, running, probe)
        return Part(container, running)

    async def start_all(self, *handlers: str) -> Mapping[str, Part]:
        """Start these side by side."""
        return dict(zip(handlers, await asyncio.gather(*map(self.start, handlers)), strict=True))

    async def stop(self, *parts: Part) -> None:
        """Let them end as the kubelet does.

        Raises:
            AssertionError: one ended with an error, or needed SIGKILL.
        """
        await asyncio.gather(*(stopped(part.running, part.grace) for part in parts))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._started:
            each.kill()

    def _start(self, container: Container) -> Running:
        running = self.launcher.start(self._routed(container))
        self._started.append(running)
        return running

    def _containers(self, pod: PodTemplate) -> Sequence[Container]:
        return containers(pod, self.rendering, self.outside)

    def _routed(self, container: Container) -> Container:
        """Services have no addresses here: the URL of one is replaced with the port of the pods that it selects."""
        return replace(
            container,
            args=[self._route(each) for each in container.args],
            environment={name: self._route(value) for name, value in container.environment.items()},
            files={path: self._route(text) for path, text in container.files.items()},
        )

    def _route(self, text: str) -> str:
        return _SERVICE_URL.sub(self._destination, text)

    def _destination(self, match: re.Match[str]) -> str:
        found = [each for each in self.rendering.of("Service") if each.name == match[1]]
        if not found:
            return match[0]
        (service,) = found
        assert match[2] in ("", f".{NAMESPACE}", f".{NAMESPACE}.svc", f".{NAMESPACE}.svc.cluster.local"), match[0]
        wanted = int(match[3] or 80)
        (port,) = (each for each in service.spec["ports"] if each["port"] == wanted)
        (pod,) = (
            pod
            for pod in (each.pod for each in self.rendering.of("Deployment"))
            if pod is not None and selects({"matchLabels": service.spec["selector"]}, pod.labels)
        )
        *_, container = self._containers(pod)
        return f"{_ADDRESS}:{container.port(port.get('targetPort', port['port']))}"


def _pod(owner: Object) -> PodTemplate:
    if owner.pod is None:
        raise LookupError(f"{owner} makes no pods")
    return owner.pod
