"""Numbers with a suffix or a unit, as people write them."""

from __future__ import annotations

import re


def number_of(text: str) -> int:
    """Read a large number such as 3500000, 500k, 3.5M or 1B; a `ValueError` says what is taken."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGB]?)", text.strip())
    number = found and round(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}.get(found[2], 1e9))
    if not number:
        raise ValueError("takes a number, as in 500k or 10M")
    return number


def latency_of(text: str) -> float:
    """Read the time of one image, such as 20ms or 0.5s, as seconds; else as `number_of`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    seconds = found and float(found[1]) * {"ms": 1e-3, "s": 1.0}[found[2]]
    if not seconds:
        raise ValueError("takes a time with its unit, as in 20ms or 0.5s")
    return seconds
