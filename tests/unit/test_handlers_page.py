"""The files of docs/handlers.md, written to a folder as the page says, and its tests run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/handlers.md").read_text(encoding="utf-8")
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_the_page(directory: Path) -> dict[str, str]:
    """Write the page's files; their texts by their names."""
    files = dict(FILE.findall(PAGE))
    (directory / "my_app").mkdir()
    for name, text in {"my_app/__init__.py": "", **files}.items():
        (directory / name).write_text(text, encoding="utf-8")
    return files


def test_the_tests_on_the_page_pass(tmp_path: Path) -> None:
    files = write_the_page(tmp_path)
    assert {"test_handlers.py", "test_charging.py", "test_blocking.py"} <= files.keys()
    written = sum(text.count("\ndef test_") for text in files.values())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLUX_", "PYTEST_"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the page installs pytest alone
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert re.search(rf"^{written} passed", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_the_installation_of_pytest_is_part_of_the_page() -> None:
    assert "```sh\npip install pytest\npytest\n```" in PAGE
