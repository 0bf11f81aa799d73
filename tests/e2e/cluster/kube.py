"""helm and kubectl against one cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.chart import tools
from tests.e2e.cluster.waiting import until

COMMAND_TIMEOUT: Final = 120.0
FORWARD_TIMEOUT: Final = 60.0


class Refused(Exception):
    """helm or kubectl failed; the text is what it said."""


class Kube:
    """One namespace of a cluster, seen by whoever `kubeconfig` lets in."""

    def __init__(self, kubeconfig: Path, namespace: str, home: Path) -> None:
        """`home` is where helm and kubectl keep what they remember."""
        self.namespace = namespace
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(home)}

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = COMMAND_TIMEOUT) -> str:
        """What kubectl prints.

        Raises:
            Refused: it failed, or took longer than `timeout` seconds.
        """
        return self._run([str(tools.kubectl()), "--namespace", self.namespace, *arguments], stdin, timeout)

    def helm(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """What helm prints; raises as `kubectl`. It is told no namespace: releases have their own."""
        return self._run([str(tools.helm()), *arguments], None, timeout)

    def apply(self, documents: str, namespace: str | None = None) -> None:
        """Make these, or change them; a field that the API server does not know is refused."""
        options = ["--server-side", "--force-conflicts", "--validate=strict", "--filename=-"]
        options += [] if namespace is None else [f"--namespace={namespace}"]
        self.kubectl("apply", *options, stdin=documents)

    def get(self, *what: str) -> Mapping[str, Any]:
        """An object, or a list of them."""
        found: Mapping[str, Any] = json.loads(self.kubectl("get", *what, "--output=json"))
        return found

    def pods(self, handler: str) -> Sequence[Mapping[str, Any]]:
        """The pods of a handler that are not on their way out."""
        listed = self.get(
            "pods", f"--selector=app.kubernetes.io/component={handler},app.kubernetes.io/part-of=taskflux"
        )
        return [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[str]:
        """A URL at which `port` of a Service answers while the block lasts."""
        command = [str(tools.kubectl()), "--namespace", self.namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                assert process.stdout is not None
                os.set_blocking(process.stdout.fileno(), False)
                yield f"http://127.0.0.1:{_local_port(process)}"
            finally:
                process.terminate()

    def _run(self, command: Sequence[str], stdin: str | None, timeout: float) -> str:
        name = " ".join([Path(command[0]).name, *command[1:]])
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                input=stdin or "",
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"{name}: no end within {timeout:.0f} s") from None
        if done.returncode != 0:
            raise Refused(f"{name}:\n{done.stderr}{done.stdout[-4000:]}")
        return done.stdout


def _local_port(process: subprocess.Popen[bytes]) -> int:
    """Where kubectl listens, which it says once it does."""
    said = b""

    def told() -> int | None:
        nonlocal said
        assert process.stdout is not None
        said += process.stdout.read() or b""
        found = re.search(rb"Forwarding from 127\.0\.0\.1:(\d+)", said)
        if found is None and process.poll() is not None:
            raise Refused(f"kubectl port-forward ended: {said.decode(errors='replace')}")
        return int(found[1]) if found else None

    return until("kubectl forwards a port", told, FORWARD_TIMEOUT)
