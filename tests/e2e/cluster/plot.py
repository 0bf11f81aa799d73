"""`python -m tests.e2e.cluster.plot mails.csv mails.png`: what waited, and how many pods there were, over a run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def draw(run: Path, image: Path) -> None:
    """The run of `test_load.py`, as a picture."""
    with run.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    seconds = [row["seconds"] for row in rows]
    figure, waiting = pyplot.subplots(figsize=(8, 3.5))
    waiting.plot(seconds, [row["waiting"] for row in rows], color="#2563eb")
    waiting.set_ylabel("mails not yet delivered", color="#2563eb")
    waiting.set_xlabel("seconds since the first was submitted")
    pods = waiting.twinx()
    pods.step(seconds, [row["pods"] for row in rows], where="post", color="#ea580c")
    pods.set_ylabel("pods", color="#ea580c")
    pods.set_ylim(bottom=0)
    waiting.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
