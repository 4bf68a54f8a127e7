"""What trials bring home: an actor beside the driver, which holds no resources of the cluster.

A run's files come piece by piece into `.collect/` and take their places together once all of them
are there, `result.json` last. An attempt that another one has followed is told that it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ballot.engines.ray.data import Part, Place, Source
from ballot.values import Json, Values

STAGE = ".collect"
LAST = "result.json"  # the file that says that the others are there
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*")
OVER = "over"  # what an attempt hears that is not the trial's present one
NEWS_S = 1.0  # after which who waits for news hears that there is none


class Receiver:
    """Files of runs into the outputs of a search, news to its driver, orders to the trials."""

    def __init__(self, outputs: str, data: str | None = None) -> None:
        self._outputs = Path(outputs)
        self._data = data
        self._source: Source | None = None
        self._attempts: dict[str, int] = {}  # the present one of each trial that was submitted
        self._orders: dict[str, str] = {}
        self._ordered: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._news: list[Json] = []
        self._something = asyncio.Event()

    async def expect(self, trial: str, attempt: int) -> None:
        """Take from now on what this attempt of a trial sends, and nothing of earlier ones."""
        self._ordered.pop(trial, asyncio.Event()).set()
        self._orders.pop(trial, None)
        self._attempts[trial] = attempt

    async def forget(self, trial: str) -> None:
        """Take nothing more of a trial, which has ended."""
        self._attempts.pop(trial, None)
        self._orders.pop(trial, None)
        self._ordered.pop(trial, asyncio.Event()).set()

    async def order(self, trial: str, word: str) -> None:
        """Tell a trial to stop."""
        self._orders[trial] = word
        self._ordered[trial].set()

    async def orders(self, trial: str, attempt: int) -> str:
        """Return what a trial is told, as soon as it is told something."""
        while self._attempts.get(trial) == attempt:
            if word := self._orders.get(trial):
                return word
            await self._ordered[trial].wait()
        return OVER

    async def report(self, trial: str, attempt: int, said: Values) -> bool:
        """Take a trial's words for the driver; whether it is to go on."""
        if self._attempts.get(trial) != attempt:
            return False
        self._news.append({"trial": trial, "attempt": attempt, **said})
        self._something.set()
        return True

    async def news(self, patience: float = NEWS_S) -> list[Json]:
        """Return what trials have said since it was last asked, waiting for something."""
        if not self._news and patience > 0:
            try:
                await asyncio.wait_for(self._something.wait(), patience)
            except asyncio.TimeoutError:
                return []
        news, self._news = self._news, []
        self._something.clear()
        return news

    async def put(
        self, trial: str, attempt: int, run: str, name: str, offset: int, piece: bytes
    ) -> bool:
        """Take a piece of a file; whether the trial is to go on."""
        if self._attempts.get(trial) != attempt:
            return False
        path = self._stage(run, attempt) / checked(run, name).replace("/", "%")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(piece)
        return True

    async def commit(
        self,
        trial: str,
        attempt: int,
        run: str,
        names: Mapping[str, int],
        kept: Sequence[str],
        small: Mapping[str, bytes],
    ) -> bool:
        """Let files that have come, each with its size, take their places; small ones come now.

        Of the checkpoints only those named in `kept` stay.
        """
        for name, content in small.items():
            await self.put(trial, attempt, run, name, 0, content)
        if self._attempts.get(trial) != attempt:
            return False
        stage, folder = self._stage(run, attempt), self._outputs / run
        for name in sorted(names, key=lambda name: (name.endswith(LAST), name)):
            path = stage / checked(run, name).replace("/", "%")
            if path.stat().st_size != names[name]:
                raise ValueError(f"{name} of {run} did not arrive as it was sent")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for path in folder.rglob("*.pt") if folder.is_dir() else ():
            if str(path.relative_to(folder)) not in kept:
                path.unlink()
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are under way
            stage.parent.rmdir()
        return True

    async def here(self, run: str) -> dict[str, int]:
        """Return the files of a run that are here, for a trial that goes on with it."""
        folder = self._outputs / run
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return {
            str(path.relative_to(folder)): path.stat().st_size
            for path in paths
            if not path.name.startswith(".")
        }

    async def get(self, run: str, name: str, offset: int, size: int) -> bytes:
        """Return a piece of a file of a run."""
        with (self._outputs / run / checked(run, name)).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    async def data_files(self, trial: str, attempt: int) -> dict[str, int] | None:
        """Return the files of the data with their sizes; None where the trial is over."""
        return self._files().files if self._attempts.get(trial) == attempt else None

    async def data_piece(
        self, trial: str, attempt: int, place: Place
    ) -> tuple[list[Part], Place] | None:
        """Return a piece of the data, and where the next begins; None where the trial is over."""
        return self._files().piece(place) if self._attempts.get(trial) == attempt else None

    def _files(self) -> Source:
        if self._source is None:
            assert self._data is not None
            self._source = Source(Path(self._data))
        return self._source

    def _stage(self, run: str, attempt: int) -> Path:
        if not PART.fullmatch(run):
            raise ValueError(f"{run!r} is no name of a run")
        return self._outputs / STAGE / f"{run}.{os.getpid()}.{attempt}"


def checked(run: str, name: str) -> str:
    """Return a name if it stays in the run's folder, or is that of the run's ballot beside it."""
    parts = PurePosixPath(name).parts
    inside = parts and "/".join(parts) == name and all(map(PART.fullmatch, parts))
    if not (inside or name == f"../{run}.csv"):
        raise ValueError(f"{name!r} is not a file of {run}")
    return name
