"""A search in NNI's list of this user: where its files are, and where its manager listens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil  # comes with NNI

from ballot.engines.nni.portal import Portal
from ballot.engines.nni.processes import is_manager


@dataclass
class Listed:
    """An entry of the list, whether its manager runs or not."""

    id: str
    folder: Path  # NNI's: database, logs, words of the trials
    port: int | None = None
    pid: int | None = None  # of NNI's manager
    prefix: str | None = None
    began: float = 0.0  # seconds since the epoch

    @property
    def portal(self) -> Portal:
        """Where its manager listens."""
        return Portal(self.port, self.prefix)

    def manager(self) -> psutil.Process | None:
        """Return its manager if that process lives: a pid alone may by now be another's."""
        if self.pid is None:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.status() != psutil.STATUS_ZOMBIE and is_manager(process, self.id):
                return process
        return None

    def is_running(self) -> bool:
        """Whether its manager runs."""
        return self.manager() is not None
