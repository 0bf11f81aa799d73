"""How this machine's pip reaches its index, as the secrets that a build may be given."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

# Where packages come from, and nothing that only means something on this machine.
CARRIED = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "timeout", "retries")
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def secrets(directory: Path) -> dict[str, str]:
    """PIP_CONF and CA for `image/build`, where this machine has something to say; files are made in `directory`."""
    configuration = _pip_configuration()
    found = {}
    lines = [f"{key} = {_indented(value)}" for key, value in configuration.items() if key in CARRIED]
    if lines:
        pip_conf = directory / "pip.conf"
        pip_conf.touch(mode=0o600)
        pip_conf.write_text("\n".join(["[global]", *lines, ""]))
        found["PIP_CONF"] = str(pip_conf)
    for certificates in (configuration.get("cert"), *map(os.environ.get, CERTIFICATES)):
        if certificates and Path(certificates).is_file():
            found["CA"] = certificates
            break
    return found


def _pip_configuration() -> dict[str, str]:
    """pip's own settings by their bare names; what the environment says comes last, as with pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    pairs = [line.partition("=")[::2] for line in listed]
    ordered = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, value in ordered if value}


def _indented(value: str) -> str:
    """A value of several lines goes on where lines are indented."""
    return value.strip().replace("\n", "\n    ")
