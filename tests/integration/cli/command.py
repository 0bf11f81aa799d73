"""The `taskflux` command as a process, or called in this one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from taskflux.cli import main
from taskflux.worker.settings import Settings
from tests.keys import CLIENT, SERVER

ALONE = {"TASKFLUX_DEV": "off"}
"""A developer's stack may run in this folder: do not look for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The output of a call of the command, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed under `--json`."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Command:
    """Calls the command with an environment of its own, on top of what is `inherited` (by default: all but ours)."""

    environment: dict[str, str]
    program: tuple[str, ...] = (sys.executable, "-m", "taskflux")
    inherited: Mapping[str, str] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Command:
        """The environment of a running system."""
        kafka = settings.kafka
        return cls(
            {
                "TASKFLUX_API__URL": f"http://127.0.0.1:{settings.http.port}",
                **CLIENT,
                **SERVER,
                "TASKFLUX_POSTGRES__DSN": settings.postgres.dsn.get_secret_value(),
                "TASKFLUX_POSTGRES__POOLER": str(settings.postgres.pooler).lower(),
                "TASKFLUX_POSTGRES__STATEMENT_TIMEOUT": "2.5",
                "TASKFLUX_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "TASKFLUX_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
                "TASKFLUX_KAFKA__PARTITIONS": str(kafka.partitions),
                "TASKFLUX_KAFKA__MAX_RECORD_BYTES": str(kafka.max_record_bytes),
                "TASKFLUX_KAFKA__DEAD_LETTER_MAX_BYTES": str(kafka.dead_letter_max_bytes),
                "TASKFLUX_KAFKA__IDEMPOTENT": str(kafka.idempotent).lower(),
                "TASKFLUX_KAFKA__TANSU": str(kafka.tansu).lower(),
                "TASKFLUX_REDIS__URL": settings.redis.url.get_secret_value() if settings.redis.url else "",
                "TASKFLUX_WORKER__LEASE_SECONDS": str(settings.worker.lease_seconds),
                "TASKFLUX_WORKER__BEAT_SECONDS": str(settings.worker.beat_seconds),
            }
        )

    async def __call__(self, *words: str, stdin: str = "", cwd: Path | None = None, **environment: str) -> Outcome:
        """Run it to its end."""
        inherited = self.inherited
        if inherited is None:
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLUX_")}
        process = await asyncio.create_subprocess_exec(
            *self.program,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**inherited, **ALONE, **self.environment, **environment},
            cwd=cwd,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), err.decode())

    async def here(self, *words: str, **environment: str) -> Outcome:
        """Run it to its end in a thread, for a third of what a process costs; meanwhile os.environ is its own."""
        others = dict.fromkeys(name for name in os.environ if name.startswith("TASKFLUX_"))
        variables = {**others, **ALONE, **self.environment, **environment}
        result = await asyncio.to_thread(CliRunner().invoke, main, words, env=variables)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)
