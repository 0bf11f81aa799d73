"""Runs the README's checked blocks in a fresh clone: the last commit, an empty directory, nothing else."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taskflux.local.ports import is_free
from tests.readme.blocks import BadReadme, Block, checked_blocks, plan
from tests.readme.serving import Serving
from tests.readme.trouble import Failed

NAMED_PORT = re.compile(r"(?:127\.0\.0\.1|localhost):(\d+)")
USUAL_PORT = 8080
SHELL_SECONDS = 180.0
MARK = "-- check: "


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where commands are run, and with which environment."""

    directory: Path
    environment: dict[str, str]

    def run(self, blocks: Sequence[Block], *, last: str = "true") -> str:
        """Run blocks as one script, as a reader's terminal would; answers what it printed.

        Raises:
            Failed: a command failed, a block did not print what it should, or it did not end.
        """
        script = "".join(f"echo {shlex.quote(MARK + block.name)}\n{block.script}\n" for block in blocks) + last
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SHELL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            printed = (expired.stdout or b"").decode(errors="replace")
            raise Failed(f"the commands did not end within {SHELL_SECONDS:.0f} s; they printed:\n{printed}") from None
        if done.returncode != 0:
            raise Failed(f"a command failed with exit code {done.returncode}; printed so far:\n{done.stdout}")
        parts = done.stdout.split(MARK)[1:]
        for block, part in zip(blocks, parts, strict=True):
            if block.prints is not None and block.prints not in part.partition("\n")[2]:
                raise Failed(f"“{block.name}” did not print “{block.prints}”, but:\n{part}")
        return done.stdout


def check(repository: Path, directory: Path) -> None:
    """Run it all in `directory`, which is empty.

    Raises:
        BadReadme: README.md cannot be followed.
        Failed: a command failed, did not end, or did not print what it should.
    """
    readme = repository / "README.md"
    if not readme.exists():
        raise BadReadme("there is no README.md")
    blocks = checked_blocks(readme.read_text())
    steps = plan(blocks)
    port = _port(blocks)
    if not is_free(port):
        raise Failed(f"port {port} of the README's commands is taken: stop what uses it, and try again")
    clone = directory / "taskflux"
    _clone(repository, clone)
    environment = _environment(directory, clone)
    clones = any("git clone " in block.script for block in steps.before)
    start = Terminal(directory if clones else clone, environment)
    where = Path(start.run(steps.before, last="pwd").splitlines()[-1])
    with Serving(steps.serve, where, environment) as serving:
        serving.wait_for_address(port)
        try:
            print(Terminal(where, environment).run(steps.beside))
            if steps.serve.prints is not None:
                serving.wait_for(steps.serve.prints)
        except Failed as failed:
            raise Failed(f"{failed}\nThe end of what “{steps.serve.script}” printed:\n{serving.tail()}") from None
        serving.interrupt()


def _port(blocks: Sequence[Block]) -> int:
    """The port that the commands speak to.

    Raises:
        BadReadme: they speak to several.
    """
    found = {int(port) for block in blocks for port in NAMED_PORT.findall(block.script)} or {USUAL_PORT}
    if len(found) > 1:
        raise BadReadme(f"the checked commands of README.md name several ports: {sorted(found)}")
    return found.pop()


def _clone(repository: Path, clone: Path) -> None:
    command = ["git", "clone", "--quiet", "--no-local", str(repository), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{shlex.join(command)} failed: {done.stderr.strip()}")


def _environment(directory: Path, clone: Path) -> dict[str, str]:
    """Ours without any setting of TaskFlux, of make or of a virtual environment, and two commands that suit a check.

    `git clone` of the project's address stands for our fresh clone, and curl fails when the answer is an error.
    """
    tools = directory / "tools"
    tools.mkdir()
    git = tools / "git"
    git.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = clone ] || exec {shlex.quote(shutil.which("git") or "git")} "$@"\n'
        f'exec ln -s {shlex.quote(str(clone))} "${{3:-$(basename "$2" .git)}}"\n'
    )
    git.chmod(0o755)
    (tools / ".curlrc").write_text("fail-with-body\n")
    strange = ("TASKFLUX_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHON", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    path = f"{tools}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept | {"PATH": path, "CURL_HOME": str(tools)}
