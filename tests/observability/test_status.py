"""The page at `/status`: its reader of PromQL against a real Prometheus, and the page itself in a real browser."""

from __future__ import annotations

import asyncio
import html
import math
import random
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from taskflux.http.app import application
from taskflux.http.status.history import History
from taskflux.http.status.overview import Overview, rows
from taskflux.http.status.promql import evaluate, names_in
from taskflux.http.status.routes import status_routes
from taskflux.local.ports import free_port
from tests.integration.system.stack import eventually
from tests.observability.prometheus import Client, NoPromQL
from tests.observability.tools import program

pytestmark = pytest.mark.slow

QUERIES: Final = [query["expr"] for row in rows() for plot in row["plots"] for query in plot["queries"]]
START, STEP, LOOKS = 1_700_000_000, 5, 60
KEPT: Final = (
    'sum by (type) (rate(taskflux_attempts_total{outcome!~"died|held"}[30s]))',
    "increase(taskflux_published_total[1m]) > 3",
    "histogram_quantile(0.9, sum by (le, type) (rate(taskflux_wait_seconds_bucket[1m])))",
    "max without (type) (taskflux_lag) + on (topic) group_left sum by (topic) (taskflux_lag)",
    "clamp_min(taskflux_lag - 5, 0)",
)
"""What no panel asks today, and the reader is said to know."""


def looks(seed: int) -> Iterator[str]:
    """What a TaskFlux exposes, look by look: counters that rise and begin anew, gauges, histograms, series that end."""
    draw = random.Random(seed)
    counters: dict[str, float] = {}
    for number in range(LOOKS):
        lines: list[str] = []
        for name in sorted({name for expr in (*QUERIES, *KEPT) for name in names_in(expr)}):
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE {name.removesuffix('_total')} {kind}")
            below = 0
            for labels in _labels(name, number):
                key = f"{name}{{{labels}}}"
                if name.endswith("_bucket"):  # which counts all that is in those before it
                    below = draw.randrange(4) + (below if 'le="0.1"' not in labels else 0)
                rise = below if name.endswith("_bucket") else draw.randrange(4)
                if kind == "counter" or name.endswith("_bucket"):
                    if number == LOOKS // 2 and 'type="sms"' in labels:
                        counters[key] = 0  # its process began anew
                    counters[key] = counters.get(key, 0) + rise
                    lines.append(f"{key} {counters[key]}")
                else:
                    lines.append(f"{key} {draw.randrange(20)}")
        yield "\n".join(lines) + "\n"


def _labels(name: str, number: int) -> Iterator[str]:
    types = ("email", "sms") if number < LOOKS - 10 else ("email",)  # whose series end before the others
    for task_type in types:
        common = f'type="{task_type}",handler="process-{task_type}",topic="tasks.{task_type}",provider="{task_type}"'
        common += ',error_class="Transient"'
        if name.endswith("_bucket"):
            yield from (f'{common},le="{bound}"' for bound in ("0.1", "1.0", "10.0", "+Inf"))
        elif name.endswith("_total"):
            yield from (
                f'{common},outcome="{each}"' for each in ("accepted", "succeeded", "died", "adopted", "Transient")
            )
        else:
            yield from (f'{common},state="{state}"' for state in ("due", "dead"))


@asynccontextmanager
async def prometheus(samples: list[tuple[int, str]], folder: Path) -> AsyncIterator[Client]:
    """A Prometheus that has seen exactly these looks (Unix time, text)."""
    text = folder / "samples.txt"
    text.write_text(_backfill(samples))
    data = folder / "data"
    words = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)]
    await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, timeout=60)
    (folder / "prometheus.yml").write_text("{}")
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        await eventually(lambda: _answers(client), "Prometheus answers")
        yield client
    finally:
        await client.close()
        server.terminate()
        await server.wait()


async def _answers(client: Client) -> bool:
    try:
        return bool(await client.query("vector(1)"))
    except (httpx.TransportError, NoPromQL, ValueError):
        return False


def _backfill(samples: list[tuple[int, str]]) -> str:
    """All looks as one OpenMetrics text, in which each metric stands together."""
    found: dict[str, list[str]] = {}
    for moment, text in samples:
        for line in text.splitlines():
            if not line.startswith("#"):
                found.setdefault(line.partition("{")[0], []).append(f"{line} {moment}")
    lines: list[str] = []
    for name, values in sorted(found.items()):
        lines += [
            f"# TYPE {name.removesuffix('_total')} {'counter' if name.endswith('_total') else 'unknown'}",
            *values,
        ]
    return "\n".join([*lines, "# EOF", ""])


async def test_every_query_has_the_answer_that_prometheus_gives(tmp_path: Path) -> None:
    samples = [(START + STEP * number, text) for number, text in enumerate(looks(seed=1))]
    history = History({name for expr in (*QUERIES, *KEPT) for name in names_in(expr)})
    compared = 0
    async with prometheus(samples, tmp_path) as client:
        for moment, text in samples:
            history.add(text, moment)
            # Ten looks before the end some series end: a backfill leaves no mark of that, so there it is not compared.
            if moment % (5 * STEP) or moment >= START + STEP * (LOOKS - 10):
                continue
            # Between two looks: whether a sample at a range's very edge is in it, Prometheus 2 and 3 see differently.
            at = moment + 1
            for expr in (*QUERIES, *KEPT):
                mine = {tuple(sorted(labels)): value for labels, value in evaluate(expr, history, at).items()}
                theirs = {
                    tuple(sorted(series.labels.items())): series.values[0][1] for series in await client.query(expr, at)
                }
                assert mine.keys() == theirs.keys(), f"{expr} at {at}"
                for labels, value in theirs.items():
                    same = mine[labels] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
                    assert same, f"{expr} at {at}, {labels}: {mine[labels]}, Prometheus says {value}"
                compared += sum(not math.isnan(value) for value in theirs.values())
    assert compared > 500


async def nothing() -> str:
    return ""


@asynccontextmanager
async def served(overview: Overview) -> AsyncIterator[str]:
    """The page's address."""
    application = Starlette(routes=status_routes(overview))
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, lifespan="off", log_level="error"))
    serving = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: _started(server), "the page is served")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/status"
    finally:
        server.should_exit = True
        await serving


async def _started(server: uvicorn.Server) -> bool:
    return server.started


async def test_a_browser_draws_every_plot(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium here (on Debian: apt-get install chromium)")
    overview = Overview(nothing)
    for number, text in enumerate(looks(seed=2)):
        overview.look(text, START + STEP * number)
    async with served(overview) as address:
        browser = await asyncio.create_subprocess_exec(
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
            *("--no-first-run", "--disable-component-update", f"--user-data-dir={tmp_path}"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", "--dump-dom", address),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        page, said = (each.decode() for each in await asyncio.wait_for(browser.communicate(), 60))
    assert "CONSOLE" not in said, said
    titles = [plot["title"] for row in rows() for plot in row["plots"]]
    assert re.findall(r"<h3>([^<]*)<abbr", html.unescape(page)) == titles
    assert '<p id="trouble" role="alert"></p>' in page
    assert "nothing yet" not in page.partition("<main")[2].partition("</main>")[0]
    assert len(re.findall(r'<path d="M[\d.]+ [\d.]+', page)) > len(titles)
    assert re.search(r"<b[^>]*>[\d.]+/s</b>", page)
    shown = dict(re.findall(r"<h3>([^<]*)<abbr(.*?)</article>", page, re.DOTALL))
    assert re.findall(r'<text class="lane"[^>]*>([^<]*)<', shown["Circuits"]) == ["email", "sms"]
    assert 'class="bad"' in shown["Circuits"]
    axis = re.findall(r'text-anchor="end">([^<:]*)<', shown["From acceptance to success"])
    assert axis == ["100 ms", "1 s", "10 s"]
    assert re.findall(r'class="key" style="background: var\((--\w+)\)', shown["Failed attempts"]) == ["--c5"]


async def test_a_wrong_span_is_a_problem_that_says_what_is_right() -> None:
    transport = httpx.ASGITransport(application(status_routes(Overview(nothing))))
    async with httpx.AsyncClient(transport=transport, base_url="http://taskflux") as client:
        answer = await client.get("/status/plots?minutes=soon")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert "from 1 to 30" in answer.json()["detail"]
        assert (await client.get("/status/plots")).json()["rows"]
