"""`taskflux dev my_app.handlers` as a person has it: the real command, the embedded servers, one terminal."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from taskflux.local.ports import free_port
from tests.integration.local.test_dev import PARTS
from tests.integration.system.stack import eventually

SOURCE = """
from pydantic import BaseModel

from taskflux import Permanent, Receipt, Task, handler


class Resize(BaseModel):
    url: str
    width: int


@handler("resize-image", payload=Resize)
async def resize_image(task: Task[Resize]) -> Receipt:
    print("resizing", task.payload.url)
    if not task.payload.url.startswith("https://"):
        raise Permanent("only https is fetched")
    return Receipt({"width": task.payload.width})
"""


@dataclass(frozen=True, slots=True)
class Terminal:
    """A shell in the application's folder, with no variable of ours."""

    folder: Path

    async def run(self, *words: str, folder: str = ".", status: int = 0) -> tuple[str, str]:
        """`taskflux` with these words; what it wrote to stdout and to stderr."""
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("taskflux"),
            *words,
            cwd=self.folder / folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = (each.decode() for each in await asyncio.wait_for(process.communicate(), 240))
        assert process.returncode == status, out + err
        return out, err

    async def until_it_says(self, text: str, times: int = 1) -> None:
        async def said() -> bool:
            return (self.folder / ".taskflux/logs/dev.log").read_text().count(text) >= times

        await eventually(said, f"it says {text!r}")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_handler_is_run_fails_is_fixed_and_its_dead_letter_replayed_in_one_terminal(servers_dir: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=servers_dir)) / "my shop"
    source = folder / "my_app" / "handlers.py"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)
    (folder / "deep" / "down").mkdir(parents=True)
    (folder / ".taskflux").mkdir()
    ports = {name: free_port() for name in (*PARTS, "resize-image")}
    (folder / ".taskflux" / "ports.json").write_text(json.dumps(ports))
    here = Terminal(folder)
    try:
        said, _ = await here.run("dev", "my_app.handlers", "--port", str(free_port()), "--detach")
        assert "resize-image" in said
        assert "email              succeeded" in said
        url = said.partition("Serving on ")[2].split()[0]

        good = '{"url": "https://example.org/a.png", "width": 320}'
        out, err = await here.run("send", "resize-image", good, "--wait", "--json", folder="deep/down")
        assert json.loads(out)["result"] == {"width": 320}
        assert f"using the taskflux dev in {folder}/.taskflux ({url})" in err
        await here.until_it_says("│ resize-image       resizing https://example.org/a.png")

        _, err = await here.run("send", "resize-image", '{"url": "x"}', status=1)
        assert "payload.width" in err
        bad = good.replace("https", "http")
        _, err = await here.run("send", "resize-image", bad, "--wait", status=1)
        assert "Permanent: only https is fetched" in err

        source.write_text(SOURCE.replace("https://", "http") + "x = (\n")
        await here.until_it_says("SyntaxError: '(' was never closed, in my_app/handlers.py at line 18")
        source.write_text(SOURCE.replace("https://", "http"))
        await here.until_it_says("resize-image       is reloaded")
        await here.run("dead-letters", "replay", "--type", "resize-image", "--error-class", "Permanent", "--yes")
        out, _ = await here.run("tasks", "list", "--type", "resize-image", "--json")
        assert {task["status"] for task in json.loads(out)["items"]} == {"succeeded"}

        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            shown = (await client.get("/metrics")).text
        assert 'taskflux_peer_up{peer="resize-image"} 1.0' in shown
        assert 'handler="resize-image"' in shown

        out, _ = await here.run("doctor", "--json")
        findings = json.loads(out)["findings"]
        # Here nobody needs a key, and the doctor says so.
        assert [each["check"] for each in findings if each["level"] != "ok"] == ["authentication"]
    finally:
        await here.run("dev", "--stop")
    await here.run("send", "resize-image", good, "--url", url, status=3)
