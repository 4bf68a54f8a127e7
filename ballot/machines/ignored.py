"""What an ignore file keeps from other machines, by the rules of a .gitignore (git-scm.com).

NNI and Ray both read .nniignore so: the last pattern that matches counts, `!` takes files back, a
pattern with a slash before its end starts at the top, and what is in a hidden folder stays hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ballot.problems import Problem
from ballot.wording import plural

TOP = ("train", "assembly", "dataset", "loss", "metrics", "model", "optim")
WILD = re.compile(r"(/\*\*/|^\*\*/|/\*\*$|\*+|\?|\[[^\]]+\])")
MEANS = {"/**/": "/(?:.*/)?", "**/": "(?:.*/)?", "/**": "/.*", "?": "[^/]"}


def needed_problems(code: Path, ignore_file: str) -> list[Problem]:
    """Return the patterns of an ignore file that hide what every trial needs."""
    try:
        lines = (code / ignore_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    hidden: dict[str, list[str]] = {}
    for path in needed(code):
        pattern = hidden_by(path, lines)
        if pattern is not None:
            hidden.setdefault(pattern, []).append(path)
    return [
        Problem(
            str(code / ignore_file),
            f"{pattern!r} hides {paths[0]}{_more(paths)}, which trials on other machines need",
            f"write /{pattern.lstrip('/')} for what lies at the top alone, or remove it",
        )
        for pattern, paths in hidden.items()
    ]


def _more(paths: Sequence[str]) -> str:
    return f" and {plural(len(paths) - 1, 'more file')}" if len(paths) > 1 else ""


def needed(code: Path) -> Iterator[str]:
    """Yield the files that every trial needs, relative to the folder of the code."""
    if not (code / "ballot").is_dir():  # another project's
        return
    yield from (f"{name}.py" for name in TOP if (code / f"{name}.py").is_file())
    for path in sorted((code / "ballot").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(code).as_posix()


def hidden_by(path: str, lines: Sequence[str]) -> str | None:
    """Return the pattern that hides a file, or one of the folders that it is in."""
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        pattern = _last_match("/".join(parts[:depth]), depth < len(parts), lines)
        if pattern is not None:
            return pattern
    return None


def _last_match(path: str, is_folder: bool, lines: Sequence[str]) -> str | None:
    found = None
    for line in lines:
        pattern = line.rstrip()
        if not pattern or pattern.startswith("#"):
            continue
        if _matches(path, is_folder, pattern.removeprefix("!")):
            found = None if pattern.startswith("!") else pattern
    return found


def _matches(path: str, is_folder: bool, pattern: str) -> bool:
    if pattern.endswith("/") and not is_folder:
        return False
    bare = pattern.removesuffix("/")
    name = path if "/" in bare else path.rpartition("/")[2]
    parts = WILD.split(bare.removeprefix("/"))
    return re.fullmatch("".join(_meaning(part) for part in parts), name) is not None


def _meaning(part: str) -> str:
    if part in MEANS:
        return MEANS[part]
    if part.startswith("*"):
        return "[^/]*"
    if part.startswith("[") and part.endswith("]"):
        return "[^" + part[2:] if part.startswith("[!") else part
    return re.escape(re.sub(r"\\(.)", r"\1", part))
