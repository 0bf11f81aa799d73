"""Runs the checked blocks of README.md and docs/ in a fresh clone: the last commit, an empty directory and no more."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from taskflux.local.ports import is_free
from tests.readme.blocks import ELSEWHERE, BadReadme, Block, Saved, checked_blocks, plan, steps
from tests.readme.reader import Reader
from tests.readme.serving import Serving
from tests.readme.shell import Shell
from tests.readme.trouble import Failed

NAMED_PORT = re.compile(r"(?:127\.0\.0\.1|localhost):(\d+)")
USUAL_PORT = 8080
TUTORIAL = "docs/tutorial.md"
TUTORIAL_SECONDS = 600.0


def check(repository: Path, directory: Path) -> None:
    """Run it all in `directory`, which is empty.

    Raises:
        BadReadme: a page cannot be followed.
        Failed: a command failed, did not end, or did not print what it should.
    """
    readme = repository / "README.md"
    if not readme.exists():
        raise BadReadme("there is no README.md")
    blocks = checked_blocks(readme.read_text())
    port = _port(blocks)
    if not is_free(port):
        raise Failed(f"port {port} of the README's commands is taken: stop what uses it, and try again")
    clone = directory / "clone" / "taskflux"
    _clone(repository, clone)
    environment = _environment(directory, clone)
    _readme_and_pages(blocks, clone, port, environment)
    _tutorial(clone, directory, environment)


def _readme_and_pages(blocks: list[Block], clone: Path, port: int, environment: dict[str, str]) -> None:
    """The README from its first command on, and beside what it starts the other pages."""
    split = plan(blocks)
    clones = any("git clone " in block.script for block in split.before)
    start = clone.parent.parent / "terminal"
    start.mkdir()
    with Shell(start if clones else clone, environment) as shell:
        shell.run([*split.before, Block("where the reader is", "echo here: $(pwd)")])
        where = Path(shell.text().rpartition("here: ")[2].splitlines()[0])
    with Serving(split.serve, where, environment) as serving:
        serving.wait_for_address(port)
        try:
            with Shell(where, environment) as shell:
                shell.run(split.beside)
            _say("README.md", split.beside)
            if split.serve.prints is not None:
                serving.wait_for(split.serve.prints)
            _pages(where, environment)
        except Failed as failed:
            raise Failed(f"{failed}\nThe end of what “{split.serve.script}” printed:\n{serving.tail()}") from None
        serving.interrupt()


def _pages(clone: Path, environment: dict[str, str]) -> None:
    """The checked blocks of docs/, each page in a terminal of its own, in the clone whose program runs."""
    path = f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    for page in sorted((clone / "docs").rglob("*.md")):
        name = page.relative_to(clone).as_posix()
        if name in (TUTORIAL, *ELSEWHERE) or not (found := _steps(clone, name)):
            continue
        try:
            with Shell(clone, environment | {"PATH": path}) as shell:
                shell.run(found)
        except Failed as failed:
            raise Failed(f"{name}: {failed}") from None
        _say(name, found)


def _tutorial(clone: Path, directory: Path, environment: dict[str, str]) -> None:
    """The tutorial, by an ordinary user, in a folder of their own with a space in its path."""
    found = _steps(clone, TUTORIAL)
    if not found:
        raise BadReadme(f"{TUTORIAL} has no checked block")
    reader = Reader(directory / "a reader's folder", environment)
    began = time.monotonic()
    try:
        with Shell(reader.folder, reader.environment, reader.user) as shell:
            shell.run(found)
    except Failed as failed:
        raise Failed(f"{TUTORIAL}: {failed}") from None
    took = time.monotonic() - began
    _say(f"{TUTORIAL} ({took:.0f} s, Python {reader.version}, {reader.who})", found)
    if took > TUTORIAL_SECONDS:
        raise Failed(f"{TUTORIAL} took {took:.0f} s, and promises ten minutes")


def _steps(clone: Path, name: str) -> list[Block | Saved]:
    try:
        return steps((clone / name).read_text())
    except BadReadme as bad:
        raise BadReadme(f"{name}: {bad}") from None


def _say(page: str, done: Sequence[Block | Saved]) -> None:
    print(f"  {page}: {len(done)} steps", flush=True)


def _port(blocks: list[Block]) -> int:
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

    `git clone` of the project's address clones the commit that is checked, and curl fails when the answer is an error.
    """
    tools = directory / "tools"
    tools.mkdir()
    git = tools / "git"
    program = shlex.quote(shutil.which("git") or "git")
    git.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = clone ] || exec {program} "$@"\n'
        f'exec {program} clone --quiet {shlex.quote(clone.as_uri())} "${{3:-$(basename "$2" .git)}}"\n'
    )
    git.chmod(0o755)
    (tools / ".curlrc").write_text("fail-with-body\n")
    scratch = directory / "scratch"
    scratch.mkdir()
    strange = ("TASKFLUX_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHON", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    path = f"{tools}{os.pathsep}{kept.get('PATH', os.defpath)}"
    trust = tools / "gitconfig"
    trust.write_text("[safe]\n\tdirectory = *\n")  # another user clones what is ours
    ours = {"PATH": path, "CURL_HOME": str(tools), "TMPDIR": str(scratch), "GIT_CONFIG_GLOBAL": str(trust)}
    return kept | ours
