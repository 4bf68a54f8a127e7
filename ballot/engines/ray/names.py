"""Names of searches and trials, and how a configuration calls what is optimised."""

from __future__ import annotations

import secrets
import string

MODES = {"maximize": "max", "minimize": "min"}


def new_id(length: int = 8) -> str:
    """Return a new name of a search or a trial."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))
