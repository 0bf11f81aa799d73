"""Dashboards as TypeScript literals, held against Grafana's own schema by the strict compiler.

The compiler and the schema come from npm, as the archives whose SHA-512 stands here; they are kept outside of the
repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.observability.boards import Document
from tests.observability.tools import program

ARCHIVES: Final = {
    "@grafana/schema@13.2.3": (
        "rk8FEO7yuFfRTK/JD39747SZFQ+iCTQbpm6Mh2OjnqGx/g/uQQFx56t64eCLXWEyoR68ru4cigcGKrXk+ozrLg=="
    ),
    "typescript@5.9.3": "jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw==",
}
"""Package and version → the archive's SHA-512."""

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskflux-tests" / "npm"
TYPES: Final = Path(__file__).with_name("grafana_board.ts")


def complaints(boards: Mapping[str, Document], directory: Path) -> dict[str, list[str]]:
    """What the compiler has against each dashboard: an empty list where nothing."""
    modules = _modules()
    schema = modules / "@grafana/schema/dist/types"
    raw = {
        f"@grafana/schema/raw/{name}": [str(schema / f"raw/composable/{name}/panelcfg/x/types.gen.d.ts")]
        for name in ("heatmap", "stat", "statetimeline", "timeseries")
    }
    options = {
        "strict": True,
        "noEmit": True,
        "skipLibCheck": True,
        "types": [],
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "paths": {"@grafana/schema": [str(schema / "index.d.ts")], **raw},
    }
    files = {f"board{place}.ts": name for place, name in enumerate(boards)}
    (directory / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": list(files)}))
    shutil.copy(TYPES, directory)
    for file, name in files.items():
        literal = json.dumps(boards[name], indent=1)
        (directory / file).write_text(
            f"import type {{ Board }} from './{TYPES.stem}';\nexport const board: Board = {literal};\n"
        )
    compiler = [program("node"), str(modules / "typescript/bin/tsc"), "--project", ".", "--pretty", "false"]
    done = subprocess.run(compiler, capture_output=True, text=True, timeout=240, check=False, cwd=directory)
    found: dict[str, list[str]] = {name: [] for name in boards}
    place = ""
    for line in done.stdout.splitlines():
        if (at := re.match(r"(board\d+\.ts)\(", line)) is not None:
            place = files[at[1]]
        assert place, f"the compiler complains of more than the dashboards: {line}"
        found[place].append(line)
    assert bool(done.returncode) == any(found.values()), done.stdout + done.stderr
    return found


def _modules() -> Path:
    """A folder with the packages in it, each checked against its SHA-512."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for package, digest in ARCHIVES.items():
        place = CACHE / hashlib.sha256(digest.encode()).hexdigest()[:16]
        if not place.exists():
            _unpack(_archive(package, digest), place)
        link = CACHE / "modules" / package.rpartition("@")[0]
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.resolve() != place / "package":
            link.unlink(missing_ok=True)
            link.symlink_to(place / "package")
    return CACHE / "modules"


def _archive(package: str, digest: str) -> Path:
    pack = [program("npm"), "pack", package, "--json", "--pack-destination", str(CACHE)]
    done = subprocess.run(pack, capture_output=True, text=True, timeout=240, check=False, cwd=CACHE)
    assert done.returncode == 0, f"npm does not give {package}: {done.stderr[-500:]}"
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    file: Path = CACHE / listed[0]["filename"].replace("@", "").replace("/", "-")
    found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    assert found == digest, f"{package} is not the archive that is named here"
    return file


def _unpack(archive: Path, place: Path) -> None:
    part = place.with_suffix(f".{os.getpid()}")
    with tarfile.open(archive) as packed:
        packed.extractall(part, filter="data")
    archive.unlink()
    part.replace(place)
