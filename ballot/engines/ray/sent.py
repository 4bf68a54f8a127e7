"""What of the code folder travels to the nodes: all but what .nniignore names."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

IGNORE = ".nniignore"
LIMIT = 500 * 2**20  # bytes of a working directory that Ray takes
ALWAYS = (".git/", "__pycache__/")


def excludes(code: Path) -> list[str]:
    """Return the patterns of what is not sent, as .gitignore would have them."""
    try:
        lines = (code / IGNORE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = [line.strip() for line in lines]
    return list(dict.fromkeys([*ALWAYS, *(n for n in named if n and not n.startswith("#"))]))


def sizes(code: Path) -> dict[str, tuple[int, int]]:
    """Count what is sent: files and bytes of each entry of the folder; folders end in a slash."""
    patterns, found = excludes(code), {}
    for entry in sorted(code.iterdir()):
        is_folder = entry.is_dir() and not entry.is_symlink()
        name = f"{entry.name}/" if is_folder else entry.name
        if _is_excluded(name, patterns):
            continue
        files = list(_walk(entry, patterns)) if is_folder else [entry]
        found[name] = (len(files), sum(_size(file) for file in files))
    return found


def _walk(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_excluded(f"{name}/", patterns)]
        yield from (Path(place, name) for name in files if not _is_excluded(name, patterns))


def _is_excluded(name: str, patterns: Sequence[str]) -> bool:
    bare = name.rstrip("/")
    return any(
        fnmatch.fnmatch(bare, pattern.rstrip("/"))
        for pattern in patterns
        if name.endswith("/") or not pattern.endswith("/")
    )


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0
