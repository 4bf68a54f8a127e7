"""NNI experiments: started, watched, stopped, and read from the disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ballot.engines.nni import guard
from ballot.engines.nni.experiment import Search
from ballot.engines.nni.processes import end_processes
from ballot.errors import UserError

REMOTE = "BALLOT_REMOTE"  # what remote.js is told
STARTS = 3  # NNI gives its manager about four seconds; on a busy machine that is not always enough


def free_port(first: int, in_a_row: int = 1) -> int:
    """Return the first port from `first` on that nothing here listens on, nor on those after it."""
    free = 0
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                free += 1
            except OSError:
                free = 0
        if free == in_a_row:
            return port + 1 - in_a_row
    raise UserError(f"port: none of {first} to {first + 99} is free; choose another with --port")


def start(config: Any, port: int, extra: Mapping[str, str]) -> Search:
    """Start NNI's manager; try again where it is slow to answer.

    It outlives this process once its folder has a `search.json` (ballot/engines/nni/node/trials.js).
    """
    return _launch(config, None, port, {**extra, "BALLOT_STARTER": str(os.getpid())})


def resume(search: Search, port: int, extra: Mapping[str, str]) -> Search:
    """Start a manager for a search that has none, from what NNI's database says of it."""
    from nni.experiment.config import ExperimentConfig

    params, _ = search.profile()
    params.pop("searchSpaceFile", None)  # the space is there too, and the file may be gone
    config = ExperimentConfig(**params)
    config.experiment_working_directory = str(search.folder.parent)
    return _launch(config, search.id, port, extra)


def environment(public: bool) -> dict[str, str]:
    """Return what to add to the environment of a manager: the guard, the mended trials, machines.

    remote.js does nothing where no machines are named (ballot/engines/nni/remote.py).
    """
    extra = guard.environment(public=public)
    before, after = guard.required("trials.js"), guard.required("remote.js")
    return {**extra, "NODE_OPTIONS": f"{before} {extra['NODE_OPTIONS']} {after}"}


def _launch(config: Any, known: str | None, port: int, extra: Mapping[str, str]) -> Search:
    import logging

    from nni.experiment import Experiment, RunMode

    logging.getLogger("nni").setLevel(logging.CRITICAL)
    root = Path(config.canonical_copy().experiment_working_directory)
    for attempt in range(STARTS):
        experiment = Experiment(config, known)
        experiment._action = "resume" if known else "create"  # NNI's own resume() never detaches
        if REMOTE in extra:  # the tunnels' ends can be reached by others on the machines
            experiment.url_prefix = secrets.token_hex(16)
        folder, began = root / experiment.id, time.time()
        try:
            with _environment(extra):
                experiment.start(
                    free_port(port, 2 if REMOTE in extra else 1), run_mode=RunMode.Detach
                )
            return Search(
                experiment.id,
                folder,
                experiment.port,
                experiment._proc.pid,
                experiment.url_prefix,
                began,
            )
        except KeyboardInterrupt:
            end_processes(experiment.id, folder, 0.0)
            raise
        except Exception as error:  # connection errors, JSON errors, RuntimeError: all of NNI's
            end_processes(experiment.id, folder, 0.0)
            if attempt == STARTS - 1:
                raise UserError(
                    f"NNI: its manager did not start ({error}); see {folder / 'log'}"
                ) from None
            time.sleep(2)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _environment(extra: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
