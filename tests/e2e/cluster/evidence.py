"""What a failed run leaves to look at."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.cluster.kube import Kube, Refused

ASKED = {
    "objects": ("get", "all,scaledobjects,ingress,networkpolicies,pvc", "--output=wide"),
    "events": ("get", "events", "--sort-by=.lastTimestamp"),
    "scaledobjects": ("describe", "scaledobjects"),
    "pods": ("describe", "pods"),
    "keda": ("logs", "--namespace=keda", "--selector=app=keda-operator", "--tail=2000"),
    "handlers": ("logs", "--selector=app.kubernetes.io/part-of=taskflux", "--prefix", "--tail=2000"),
    "dependencies": (
        "logs",
        "--selector=app.kubernetes.io/name in (kafka, postgres, valkey, mailpit, msg91)",
        "--prefix",
        "--tail=500",
    ),
}


def collect(kube: Kube, directory: Path) -> None:
    """What the cluster says of itself, a file for each question; one that it cannot answer says so."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, question in ASKED.items():
        try:
            answer = kube.kubectl(*question)
        except Refused as refused:
            answer = str(refused)
        (directory / f"{name}.txt").write_text(answer)
