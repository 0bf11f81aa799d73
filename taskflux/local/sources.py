"""Sources that are watched: which files count, when some have changed, and whether one is valid Python."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path
from typing import Final

_DEBOUNCE_MS: Final = 300
"""A save, or a set of files that is synchronised, is one change."""


class Sources:
    """Which files under `roots` are sources, and not what editors and interpreters leave beside them.

    A root is a folder or a single file. To make one needs watchfiles.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        from watchfiles import Change, DefaultFilter

        self.roots = [root.resolve() for root in roots]
        self._change = Change.modified
        self._usual = DefaultFilter()

    def has(self, path: Path) -> bool:
        """Whether `path` is one. Only what stands below a root is looked at: the root may well be in a .venv."""
        path = path.resolve()
        for root in self.roots:
            if path == root:
                return True
            if path.is_relative_to(root):
                below = path.relative_to(root)
                hidden = any(part.startswith(".") for part in below.parts)
                named = below.suffix not in ("", ".tmp")
                return named and not hidden and self._usual(self._change, str(below))
        return False

    async def changes(self) -> AsyncGenerator[Sequence[Path], None]:
        """The files that changed together, each time some have, until cancelled.

        Raises:
            OSError: they cannot be watched.
        """
        folders = [root for root in self.roots if root.is_dir()]
        # An editor may put another file in a file's place: what is watched is where it stands.
        around_files = {root.parent for root in self.roots if not root.is_dir()}
        changed: asyncio.Queue[Sequence[Path]] = asyncio.Queue()
        watches = [asyncio.create_task(self._watch(folders, changed, recursive=True))]
        if around_files:
            watches.append(asyncio.create_task(self._watch(around_files, changed, recursive=False)))
        try:
            while True:
                next_one = asyncio.create_task(changed.get())
                done, _ = await asyncio.wait([next_one, *watches], return_when=asyncio.FIRST_COMPLETED)
                if next_one in done:
                    together = set(next_one.result())
                    while not changed.empty():
                        together |= set(changed.get_nowait())
                    yield sorted(together)
                    continue
                next_one.cancel()
                for watch in done:
                    watch.result()
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.wait(watches)

    async def _watch(self, places: Iterable[Path], changed: asyncio.Queue[Sequence[Path]], *, recursive: bool) -> None:
        from watchfiles import awatch

        async for changes in awatch(
            *places,
            watch_filter=lambda _, path: self.has(Path(path)),
            debounce=_DEBOUNCE_MS,
            recursive=recursive,
            raise_interrupt=False,
        ):
            changed.put_nowait(sorted({Path(path) for _, path in changes}))


def shown(path: Path) -> str:
    """`path` from where we stand, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def syntax_error(path: Path) -> str | None:
    """Where and why a file is not valid Python; None where it is valid, not Python at all, or missing."""
    if path.suffix != ".py":
        return None
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{shown(path)}, line {error.lineno}: {error.msg}"
    except ValueError as error:  # null bytes
        return f"{shown(path)}: {error}"
    except OSError:
        return None
    return None
