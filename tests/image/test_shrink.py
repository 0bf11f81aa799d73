"""Shared libraries without their debug information still work."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "image/shrink.py"
RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("uvloop.loop", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
loop = module.Loop()
loop.call_later(0.001, loop.stop)
loop.run_forever()
loop.close()
print("ran", module.__file__)
"""


@pytest.fixture(scope="module")
def strip() -> Callable[[bytes], bytes]:
    spec = importlib.util.spec_from_file_location("shrink", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[bytes], bytes] = module.without_debug_information
    return function


@pytest.fixture(scope="module")
def library() -> Path:
    """One that is built with debug information."""
    found = importlib.util.find_spec("uvloop.loop")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)


def test_a_library_without_debug_information_is_smaller_and_runs(
    strip: Callable[[bytes], bytes], library: Path, tmp_path: Path
) -> None:
    content = library.read_bytes()
    kept = strip(content)
    assert len(kept) < len(content) / 2
    copy = tmp_path / library.name
    copy.write_bytes(kept)
    said = subprocess.run([sys.executable, "-c", RUN, copy], capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout == f"ran {copy}\n"


def test_a_library_without_debug_information_is_not_changed(strip: Callable[[bytes], bytes], library: Path) -> None:
    stripped = strip(library.read_bytes())
    for content in (stripped, b"", b"no library", b"\x7fELF\x01\x01 of 32 bits"):
        assert strip(content) == content


def test_a_hard_link_of_a_library_elsewhere_is_not_changed(library: Path, tmp_path: Path) -> None:
    cached, root = tmp_path / "cached.so", tmp_path / "root"
    cached.write_bytes(library.read_bytes())
    cached.chmod(0o755)
    root.mkdir()
    linked = root / library.name
    linked.hardlink_to(cached)
    subprocess.run([sys.executable, SOURCE, root], check=True, capture_output=True, timeout=30)
    assert linked.stat().st_size < cached.stat().st_size == library.stat().st_size
    assert linked.stat().st_mode == cached.stat().st_mode
