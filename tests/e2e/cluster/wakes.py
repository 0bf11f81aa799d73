"""`python -m tests.e2e.cluster.wakes --times 50 --out wakes.csv`: how long a handler takes to wake, part by part.

On the cluster of `make cluster`, as TaskFlux is installed there. Each wake begins at zero. A part's times come from
whoever did it: the task's timeline, a watch of the API server, the logs of containerd and of the worker.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from tests.e2e.apiserver.credentials import Credentials
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.machine.control_plane import API
from tests.e2e.cluster.machine.place import Place
from tests.e2e.cluster.taskflux import Api
from tests.e2e.cluster.waiting import until
from tests.k8s.files import NAMESPACE, RELEASE

HANDLER: Final = "process-email"
MOMENTS: Final = ("accepted", "published", "scaled", "scheduled", "container", "started", "claimed")
PARTS: Final = {
    "publish": ("accepted", "published"),
    "scaler": ("published", "scaled"),
    "scheduler": ("scaled", "scheduled"),
    "kubelet": ("scheduled", "container"),
    "start": ("container", "started"),
    "join, claim": ("started", "claimed"),
    "scheduled to claimed": ("scheduled", "claimed"),
    "whole": ("accepted", "claimed"),
}


class Watch:
    """When the handler's pods were made and scheduled, as the API server told a watch."""

    def __init__(self, credentials: Credentials) -> None:
        self.seen: dict[str, dict[str, float]] = {}
        self._client = httpx.Client(
            base_url=API, verify=credentials.context("admin", "system:masters"), trust_env=False, timeout=None
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        query = {"watch": "1", "labelSelector": f"app.kubernetes.io/component={HANDLER}"}
        while True:
            with self._client.stream("GET", f"/api/v1/namespaces/{NAMESPACE}/pods", params=query) as answer:
                for line in answer.iter_lines():
                    self._note(json.loads(line), time.time())

    def _note(self, event: Mapping[str, Any], now: float) -> None:
        pod = event["object"]
        moments = self.seen.setdefault(pod["metadata"]["name"], {"scaled": now})
        if pod["spec"].get("nodeName"):
            moments.setdefault("scheduled", now)


def wakes(times: int, api: Api, kube: Kube, watch: Watch, containerd: Path) -> Iterator[Mapping[str, float]]:
    """Unix times of `MOMENTS`, for each of so many wakes."""
    for number in range(times):
        until("the handler is at zero", lambda: not _all_pods(kube), 240)
        time.sleep(1 + number * 0.37 % 2)  # somewhere between two polls
        task = api.submit("email", {"to": "wake@example.org", "subject": f"Wake {number}", "body": "Good morning"})
        ended = api.ended(task["taskId"], 120)
        events = {event["event"]: _at(event["at"]) for event in reversed(ended["timeline"])}
        note = next(event["note"] for event in ended["timeline"] if event["event"] == "claimed")
        pod = note.partition("@")[2].rpartition(":")[0]
        # The kubelet tells that a container runs a second after it does.
        until("the kubelet tells that it runs", partial(_runs, kube, pod), 60, poll=0.2)
        worker = kube.kubectl("logs", pod)
        started = next(json.loads(line)["time"] for line in worker.splitlines() if '"started"' in line)
        (container,) = kube.get("pod", pod)["status"]["containerStatuses"]
        yield {
            "accepted": events["accepted"],
            "published": events["published"],
            **watch.seen[pod],
            "container": _started(containerd, container["containerID"].rpartition("/")[2]),
            "started": _at(started),
            "claimed": events["claimed"],
        }


def _all_pods(kube: Kube) -> Sequence[Any]:
    """Those on their way out, too."""
    pods: Sequence[Any] = kube.get("pods", f"--selector=app.kubernetes.io/component={HANDLER}")["items"]
    return pods


def _runs(kube: Kube, pod: str) -> bool:
    return all("running" in each["state"] for each in kube.get("pod", pod)["status"]["containerStatuses"])


def _started(containerd: Path, container: str) -> float:
    said = next(
        line
        for line in reversed(containerd.read_text(errors="replace").splitlines())
        if "StartContainer" in line and container in line and "returns successfully" in line
    )
    found = re.search(r'time="([^"]+)"', said)
    assert found is not None
    return _at(re.sub(r"(\.\d{6})\d+", r"\1", found[1]))


def _at(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def table(found: Sequence[Mapping[str, float]]) -> str:
    """Each part's median and 95th percentile, in seconds."""
    lines = ["| part | p50 | p95 |", "|---|---|---|"]
    for part, (since, to) in PARTS.items():
        seconds = sorted(each[to] - each[since] for each in found)
        high = seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
        lines.append(f"| {part} | {statistics.median(seconds):.2f} | {high:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """0 when all have woken."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster.wakes", description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True, help="the raw data, as CSV")
    arguments = parser.parse_args()
    place = Place()
    place.enter()
    credentials = Credentials(place.directory / "credentials")
    kube = Kube(credentials.kubeconfig(API, "admin", "system:masters"), NAMESPACE, place.directory / "home")
    address = kube.get("service", f"{RELEASE}-ingest")["spec"]["clusterIP"]
    found = []
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, MOMENTS)
        writer.writeheader()
        for each in wakes(arguments.times, Api(f"http://{address}"), kube, Watch(credentials), place.log("containerd")):
            writer.writerow({moment: f"{each[moment]:.6f}" for moment in MOMENTS})
            file.flush()
            found.append(each)
            print(f"{len(found)}: {each['claimed'] - each['accepted']:.2f} s", flush=True)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
