"""Removes from an installed environment what no process reads: debug information, sources, the packages' own tests.

`python3 image/shrink.py /opt/taskflux/lib`, in a stage that has no compiler and so no strip(1). Some wheels carry
more debug information than code, and all of it is pulled to a node before its first pod can start.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCES = {".c", ".cpp", ".h", ".proto", ".pxd", ".pxi", ".pyi", ".pyx"}
HEADER = struct.Struct("<16s2HI3QI6H")  # ELF-64, little-endian: elf(5)
SEGMENT = struct.Struct("<2I6Q")
SECTION = struct.Struct("<2I4Q2I2Q")
MAGIC = b"\x7fELF\x02\x01"


def shrink(root: Path) -> int:
    """Take it out below `root`; how many bytes that were."""
    freed = 0
    for directory in [path for path in root.rglob("tests") if path.is_dir()]:
        freed += sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        shutil.rmtree(directory)
    for path in [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]:
        if path.suffix in SOURCES:
            freed += path.stat().st_size
            path.unlink()
        elif ".so" in path.suffixes:
            content = path.read_bytes()
            kept = without_debug_information(content)
            if kept != content:
                freed += len(content) - len(kept)
                mode = path.stat().st_mode
                path.unlink()  # it may be a hard link into the cache of an installer
                path.write_bytes(kept)
                path.chmod(mode)
    return freed


def without_debug_information(content: bytes) -> bytes:
    """A shared library as the loader needs it: what its segments hold, and no table of sections.

    What has no debug information comes back as it is, and so does whatever is no 64-bit little-endian ELF file.
    """
    if not content.startswith(MAGIC):
        return content
    header = list(HEADER.unpack_from(content))
    segments_at, sections_at = header[5], header[6]
    segment_size, segments, section_size, sections, names = header[9:14]
    if not sections_at or not any(
        name.startswith((b".debug_", b".zdebug_")) for name in _section_names(content, sections_at, sections, names)
    ):
        return content
    end = segments_at + segment_size * segments
    for at in range(segments_at, end, segment_size):
        _, _, offset, _, _, in_file, _, _ = SEGMENT.unpack_from(content, at)
        end = max(end, offset + in_file)
    assert section_size == SECTION.size
    header[6] = header[12] = header[13] = 0
    return HEADER.pack(*header) + content[HEADER.size : end]


def _section_names(content: bytes, at: int, count: int, names: int) -> Iterator[bytes]:
    texts = SECTION.unpack_from(content, at + names * SECTION.size)[4]
    for index in range(count):
        start = texts + SECTION.unpack_from(content, at + index * SECTION.size)[0]
        yield content[start : content.index(b"\0", start)]


if __name__ == "__main__":
    print(f"{shrink(Path(sys.argv[1])) / 1e6:.1f} MB taken out of {sys.argv[1]}")
