"""The API against its own document: no 5xx, and no answer that the document does not describe."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.integration.system.stack import Stack

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.mark.slow
@pytest.mark.timeout(420)
async def test_no_request_gets_a_5xx_or_an_answer_that_the_document_does_not_describe(
    stack: Stack, tmp_path: Path
) -> None:
    address = f"{stack.client.base_url}".rstrip("/")
    process = await asyncio.create_subprocess_exec(
        *(str(SCHEMATHESIS), "run", f"{address}/openapi.json", "--url", address),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "25", "--seed", "1", "--no-color", "--max-failures", "20"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-12_000:]
