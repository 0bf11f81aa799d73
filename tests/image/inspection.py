"""Run by the image's own Python: imports all of TaskFlux and says, as JSON, what came from where.

Everything here is the standard library's, and nothing of the tests: the container sees this file alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import sys
import sysconfig
from pathlib import Path

UNCHECKED = b"\1\0\0\0"
"""The flags of bytecode whose source is never looked at (PEP 552)."""


def main() -> None:
    import taskflux

    # What `taskflux dev` needs is not in the image.
    left_out = ("taskflux.local",)
    for module in pkgutil.walk_packages(taskflux.__path__, "taskflux."):
        if not module.name.startswith(left_out):
            importlib.import_module(module.name)
    specs = [spec for module in list(sys.modules.values()) if (spec := getattr(module, "__spec__", None))]
    sources = [spec for spec in specs if spec.origin and spec.origin.endswith(".py") and spec.name != "__main__"]
    packages = Path(sysconfig.get_path("purelib"))
    ours = list((packages / "taskflux").rglob("*.py"))
    json.dump(
        {
            "imported": len(sources),
            "compiled_at_start": [spec.origin for spec in sources if not Path(str(spec.cached)).exists()],
            "ours": len(ours),
            "ours_without_bytecode": [str(path) for path in ours if _flags(path) is None],
            "ours_checked": [str(path) for path in ours if _flags(path) not in (None, UNCHECKED)],
            "traceback_names": sys.modules["taskflux.handlers.ingest"].serve_api.__code__.co_filename,
            "file": sys.modules["taskflux.handlers.ingest"].__file__,
            "home": str(Path.home()),
        },
        sys.stdout,
    )


def _flags(source: Path) -> bytes | None:
    """Of its bytecode; None where there is none."""
    cached = Path(importlib.util.cache_from_source(str(source)))
    return cached.read_bytes()[4:8] if cached.exists() else None


if __name__ == "__main__":
    main()
