"""How NNI spells the keys of its configurations: in version 1, in version 2, and as attributes."""

from __future__ import annotations


def plain(key: object) -> str:
    """Write a key as NNI compares them."""
    return str(key).lower().replace("_", "")
