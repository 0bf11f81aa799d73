#!/usr/bin/env python3
"""Fills the clone's virtual environment from a lock: `.venv/bin/python requirements/install.py local` (or `dev`).

`make` calls it. It needs Python 3.11 and nothing else. uv installs: the one on the PATH, or the one that dev.txt pins,
which pip fetches. Where neither works, pip installs everything, which takes several times as long. In each case only
what the lock names by its hash is installed. On a terminal one line shows how far it is, elsewhere a line every few
seconds. The whole output of uv and pip is in `.venv/setup.log`.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import importlib.util
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TextIO

ROOT: Final = Path(__file__).resolve().parents[1]
VENV: Final = Path(sys.prefix)
LOG: Final = VENV / "setup.log"

TOLD_AGAIN: Final = 10.0
"""Seconds after which a line is written where there is no terminal, although nothing has changed."""

TOLD_SOON: Final = 2.0
"""Seconds between two lines that differ."""

DISK: Final = "the disk is full: free about 500 MB (the environment takes 250, the cache of downloads as much)"
NETWORK: Final = (
    "the package index cannot be reached: check the network; behind a proxy set HTTPS_PROXY, and for an index of your"
    " own set UV_DEFAULT_INDEX (uv) or PIP_INDEX_URL (pip)"
)
HASHES: Final = (
    "a download is not the file that the lock names, so nothing of it was installed: a proxy or a mirror may have"
    " changed it; try again, or use another index (UV_DEFAULT_INDEX, PIP_INDEX_URL)"
)
PERMISSION: Final = (
    "no permission to write: run make as the owner of this folder, or clone into a folder of your own (files that"
    " an earlier `sudo make` left in .venv: `sudo rm -rf .venv`)"
)
NO_INSTALLER: Final = (
    f"{sys.executable} has no pip to start with, and uv is not on the PATH: install either one (Debian and Ubuntu:"
    " apt install python3-venv; Fedora: dnf install python3-pip; uv: https://docs.astral.sh/uv/)"
)

CAUSES: Final = (
    (r"No space left on device|\[Errno 28\]|os error 28|[Qq]uota exceeded|os error 122", DISK),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer|TLS CA certificate bundle",
        "the certificate of the package index is not trusted: name the CA of your network, for uv in SSL_CERT_FILE and"
        " for pip in PIP_CERT",
    ),
    (r"DO NOT MATCH THE HASHES|Hash mismatch", HASHES),
    (r"407 |Proxy Authentication Required", "the proxy wants a login: HTTPS_PROXY=http://user:password@host:port"),
    (
        r"[Dd]ns error|Name or service not known|[Nn]ame resolution|[Nn]etwork is unreachable|[Cc]onnection refused"
        r"|[Cc]onnection reset|[Nn]o route to host|NewConnectionError|[Tt]imed out|[Oo]peration timed out"
        # What pip says of an index that it has not reached, where it is told not to try again.
        r"|tunnel error|Tunnel connection failed|client error \(Connect\)|nodename nor servname|from versions: none",
        NETWORK,
    ),
    (r"[Pp]ermission denied|\[Errno 13\]|os error 13|[Rr]ead-only file system|os error 30", PERMISSION),
    (
        r"no wheels with a matching|no usable wheels|doesn't have a source distribution or wheel"
        r"|No matching distribution|[Ff]ailed to build|Failed building wheel|command '[^']*(cc|c\+\+|cargo)' failed",
        "a package is not made for this Python or this machine: try Python 3.11, 3.12 or 3.13"
        " (make PYTHON=/path/to/python3.12 …), on Linux (glibc) or macOS",
    ),
)
"""What uv and pip write when they fail, and the sentence that says what to do; the first that fits counts."""

FINAL: Final = (DISK, HASHES, PERMISSION)
"""After these another installer would fail alike."""

WHERE: Final = frozenset(("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "HTTPS_PROXY"))
"""What sends pip elsewhere than uv, which was told nothing of it."""

RETRIED: Final = "Retrying ("
"""What pip writes when an index does not answer; of one that answers and lacks a package it does not."""


class Failed(Exception):
    """Nothing more can be installed; the text is the sentence for a person."""


class Progress:
    """One line that is written over on a terminal; elsewhere lines, some seconds apart."""

    def __init__(self, output: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._terminal = output.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._began = self._told_at = clock()
        self._told = ""

    def show(self, text: str) -> None:
        """What goes on now; called again and again while it does."""
        now = self._clock()
        line = f"  {text}, {now - self._began:.0f} s"
        if self._terminal:
            if line != self._told:
                self._told = line
                self._write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")
        elif now - self._told_at >= (TOLD_SOON if text != self._told else TOLD_AGAIN):
            self._told, self._told_at = text, now
            self._write(f"{line}\n")

    def close(self, text: str = "") -> None:
        """The line is over; `text` stands in its place."""
        self._write(("\r\x1b[2K" if self._terminal else "") + (f"{text}\n" if text else ""))

    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._began

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed terminal
            self._output.write(text)
            self._output.flush()


def uv_progress(output: str) -> str:
    """How far uv is, by the end of what it has written."""
    found = re.findall(r"\((\d+)/([1-9]\d*)\)|\[(\d+)/([1-9]\d*)\]", output[-30_000:])
    if not found:
        return "reading the package index"
    prepared, of, installed, all_of = found[-1]
    return f"{prepared} of {of} packages downloaded" if of else f"{installed} of {all_of} packages installed"


def pip_progress(output: str, locked: int) -> str:
    """How far pip is, by all that it has written; `locked` packages stand in the lock, some for other platforms."""
    total = locked - len(re.findall(r"^Ignoring ", output, re.MULTILINE))
    done = len(re.findall(r"^\s*Collecting ", output, re.MULTILINE))
    if "Installing collected packages" in output:
        return f"{done} of {total} packages downloaded, installing them"
    retried = "; no answer from the package index, trying again" if RETRIED in output[-600:] else ""
    return f"{done} of {total} packages downloaded{retried}"


def cause(output: str) -> str | None:
    """What to do about a failure of uv or pip, by what it wrote; None for one that is not known."""
    flat = " ".join(output.split())  # uv breaks lines where it likes
    return next((sentence for sign, sentence in CAUSES if re.search(sign, flat)), None)


def readable(output: str) -> str:
    """Without control sequences, and of a line that was written over what stood there last."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.replace("\r\n", "\n").replace("\x1b[2K", "\r"))
    return "\n".join(line.rsplit("\r", 1)[-1].rstrip() for line in plain.split("\n"))


def run(command: Sequence[str | Path], environment: Mapping[str, str], seen: Callable[[str], None]) -> tuple[int, str]:
    """Run a program on a terminal of its own, where uv tells how far it is; its exit code and its output.

    `seen` is called with the output so far, several times a second.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n")
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=its,
                stderr=its,
            )
        finally:
            os.close(its)
        output = ""
        try:
            while True:
                if select.select([ours], [], [], 0.2)[0]:
                    try:
                        data = os.read(ours, 65536)
                    except OSError:  # how Linux says that the other side is closed
                        data = b""
                    if not data:
                        break
                    output += data.decode(errors="replace")
                seen(output)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            os.close(ours)
            output = readable(output)
            with contextlib.suppress(OSError):
                log.write(output + "\n")
    return code, output


class Installation:
    """One lock, installed into the environment that runs this."""

    def __init__(self, lock: Path, progress: Progress) -> None:
        self._progress = progress
        text = lock.read_text()
        build = ROOT / "requirements" / "build.txt"
        locks = [lock] if re.search(r"^setuptools==", text, re.MULTILINE) else [lock, build]
        self._requirements = [part for each in locks for part in ("-r", str(each))]
        self._locked = sum(len(re.findall(r"^[A-Za-z0-9]", each.read_text(), re.MULTILINE)) for each in locks)
        own = {name: value for name, value in os.environ.items() if name not in ("PIP_TARGET", "PIP_PREFIX")}
        own |= {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}
        self._environment = own | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_PROGRESS_BAR": "off"}

    def make(self) -> str:
        """Install by the first installer that works; its name.

        Raises:
            Failed: none works.
        """
        if (uv := shutil.which("uv")) is not None:
            output = self._by_uv(uv, self._environment)
            if output is None:
                return "uv"
            elsewhere = WHERE & for_uv(self._settings_of_pip()).keys() if cause(output) == NETWORK else WHERE
            if cause(output) in FINAL or not elsewhere:
                raise self._failed("uv", output)
        with ThreadPoolExecutor() as pool:
            settings = pool.submit(self._settings_of_pip)
            output = self._fetch_uv()
        if output is None:
            if self._by_uv(str(VENV / "bin" / "uv"), for_uv(settings.result()) | self._environment) is None:
                return "uv"
        elif cause(output) in FINAL or (cause(output) == NETWORK and RETRIED in output):
            raise self._failed("pip", output)
        if (output := self._by_pip()) is not None:
            raise self._failed("pip", output)
        return "pip"

    def _by_uv(self, uv: str, environment: Mapping[str, str]) -> str | None:
        """None when all is installed, else what uv wrote."""
        install = [uv, "pip", "install", "--python", sys.executable, "--no-deps"]
        return self._install(install, environment, uv_progress)

    def _by_pip(self) -> str | None:
        """None when all is installed, else what pip wrote."""
        install = [*_pip(), "install", "--no-deps", "--no-compile"]
        return self._install(install, self._environment, lambda output: pip_progress(output, self._locked))

    def _install(
        self, install: list[str], environment: Mapping[str, str], progress: Callable[[str], str]
    ) -> str | None:
        """The lock, then the clone itself by the build tool that the lock names; None, or the output of a failure."""
        command = [*install, "--require-hashes", *self._requirements]
        code, output = run(command, environment, lambda text: self._progress.show(progress(text)))
        if code == 0:
            # Without isolation: with it a build tool would be downloaded that no hash names.
            command = [*install, "--no-build-isolation", "-e", "."]
            code, output = run(command, environment, lambda _: self._progress.show("the taskflux command"))
        return None if code == 0 else output

    def _fetch_uv(self) -> str | None:
        """uv from dev.txt into the environment, by pip; None, or the output of a failure."""
        wanted = VENV / "uv.txt"
        wanted.write_text(entry("uv", (ROOT / "requirements" / "dev.txt").read_text()))
        options = ["--no-deps", "--no-compile", "--require-hashes", "--only-binary", ":all:", "-r", str(wanted)]
        command = [*_pip(), "install", *options]
        try:
            code, output = run(command, self._environment, lambda text: self._progress.show(_fetching(text)))
        finally:
            wanted.unlink()
        return None if code == 0 else output

    def _settings_of_pip(self) -> str:
        """What pip is told in files and variables, of which uv reads none."""
        command = [*_pip(), "config", "list"]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False).stdout

    @staticmethod
    def _failed(name: str, output: str) -> Failed:
        sentence = cause(output) or f"{name} failed"
        last = [line for line in output.splitlines() if line.strip()][-8:]
        return Failed("\n".join([f"The set-up failed: {sentence}.", *(f"  {name}: {line.strip()}" for line in last)]))


def entry(name: str, lock: str) -> str:
    """One package of a lock with its hashes."""
    found = re.search(rf"^{re.escape(name)}==(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    if found is None:
        raise Failed(f"the lock has no {name}")
    return found.group()


def for_uv(listed: str) -> dict[str, str]:
    """The output of `pip config list` as uv's environment variables."""
    variables = {
        "index-url": ("UV_DEFAULT_INDEX",),
        "extra-index-url": ("UV_INDEX",),
        "find-links": ("UV_FIND_LINKS",),
        "cert": ("SSL_CERT_FILE",),
        "client-cert": ("SSL_CLIENT_CERT",),
        "trusted-host": ("UV_INSECURE_HOST",),
        "proxy": ("HTTPS_PROXY", "HTTP_PROXY"),
    }
    told: dict[str, str] = {}
    for key, value in re.findall(r"^(?:global|install|:env:)\.([a-z-]+)=(.*)$", listed, re.MULTILINE):
        with contextlib.suppress(ValueError, SyntaxError):
            told |= dict.fromkeys(variables.get(key, ()), " ".join(str(ast.literal_eval(value)).split()))
    told = {name: value for name, value in told.items() if value}
    if "UV_INDEX" in told:
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip; what is installed has a hash
    return told


def _fetching(output: str) -> str:
    retried = RETRIED in output[-600:]
    return "fetching uv" + ("; no answer from the package index, trying again" if retried else "")


def _pip() -> list[str]:
    """The pip that comes with Python, run from its wheel: installing it first takes longer than all it does here.

    Raises:
        Failed: this Python came without one.
    """
    if importlib.util.find_spec("ensurepip") is None:
        raise Failed(NO_INSTALLER)
    import ensurepip

    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR"), Path(ensurepip.__file__).parent / "_bundled"]
    wheels = [wheel for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]
    if wheels:
        return [sys.executable, str(wheels[0] / "pip")]
    done = subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(NO_INSTALLER)
    return [sys.executable, "-m", "pip"]


def main(name: str) -> int:
    """Install `requirements/<name>.txt`; the exit code."""
    progress = Progress(sys.stdout)
    progress.close(f"Setting up {VENV.name} from requirements/{name}.txt (once) …")
    try:
        LOG.write_text("")
        installer = Installation(ROOT / "requirements" / f"{name}.txt", progress).make()
    except Failed as failed:
        progress.close()
        print(f"{failed}\nAll of it is in {VENV.name}/{LOG.name}.", file=sys.stderr)
        return 1
    except OSError as error:
        progress.close()
        print(f"The set-up failed: {cause(str(error)) or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.close()
        return 130
    progress.close(f"{VENV.name} is ready: {progress.seconds():.0f} s, by {installer}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
