"""`python -m charts.generate.dashboards`: write them; with `--check`, only say which would change (exit code 1)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from charts.generate.dashboards import one_type, overview, stores
from charts.generate.dashboards.grafana import HANDLER_UID, board, handler_chooser

ROOT: Final = Path(__file__).parents[3]
CHART: Final = ROOT / "charts/taskflux/dashboards"


def dashboards() -> Mapping[str, Any]:
    """File name → dashboard."""
    return {
        "overview.json": board(
            "taskflux-overview",
            "TaskFlux / Overview",
            "Whether tasks flow, what is stuck, why, and since when.",
            overview.ROWS,
        ),
        "handler.json": board(
            HANDLER_UID,
            "TaskFlux / Handler",
            "One handler: the attempts at its tasks, errors, times, scaling, and its provider.",
            one_type.ROWS,
            (handler_chooser(),),
            traces='{resource.service.namespace="taskflux" && span.messaging.destination.name=~".*${handler}"}',
        ),
        "stores.json": board(
            "taskflux-stores",
            "TaskFlux / Stores and relay",
            "What everything depends on: the API, PostgreSQL, Kafka, Redis, and the relay.",
            stores.ROWS,
        ),
    }


def generated() -> Mapping[Path, str]:
    """Each file with its content."""
    return {
        CHART / name: json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, document in dashboards().items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m charts.generate.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if something would change")
    check = parser.parse_args().check
    stale = {path: text for path, text in generated().items() if not path.is_file() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} is not what the generator writes: run `make dashboards`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
