"""How numbers, times and lists read in a message."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from ballot.errors import UserError


def natural(name: str) -> tuple:
    """Sort key under which class 2 comes before class 10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(_value(p) if i % 2 else p for i, p in enumerate(parts)), name


def _value(digits: str) -> tuple[int, str]:
    """Return what sorts as the number does; Python makes no number of thousands of digits."""
    digits = digits.lstrip("0")
    return len(digits), digits


def short(text: object, limit: int = 48) -> str:
    """Quote `text` for a message: on one line, and not longer than it helps."""
    quoted = repr(str(text))
    return quoted if len(quoted) <= limit else quoted[: limit - 4] + "...'"


def few(names: Iterable[str], limit: int = 3) -> str:
    """Name the first few of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(short(name) for name in names[:limit]) + more


def clock(seconds: float) -> str:
    """Write a time as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def short_value(value: object) -> str:
    """Write a value in few digits."""
    return format(value, ".3g") if isinstance(value, float) else str(value)


def compact(value: object, digits: int = 4) -> str:
    """Write a value for a person: four digits of a number are enough to compare."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def last_lines(path: Path, count: int) -> str:
    """Return the last lines of a text that may be long; nothing where it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 200 * count - 2000))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def span(seconds: float) -> str:
    """Write a time as people say it: 45 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1) if minutes > 300 else minutes, 60)
    return f"{hours} h" + f" {minutes} min" * bool(minutes)


def size(count: float) -> str:
    """Write a number of bytes: 880 MB, 3.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def seconds_of(text: str | int, source: str) -> float:
    """Read a duration such as 90, 90s, 30m, 2h or 1d as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(text).strip())
    if not found or float(found[1]) <= 0:
        raise UserError(f"{source}: {text!r} is no duration; as in 90s, 30m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def terminal_width() -> int:
    """Return the columns of the terminal; 100 where the output goes elsewhere."""
    return shutil.get_terminal_size((100, 24)).columns


def plural(number: int, noun: str) -> str:
    """Write a number with its noun: 1 run, 2 runs, 1,000 runs."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
