"""NNI experiments: started, watched, stopped, and read from the disk."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil  # comes with NNI

from ballot.engines.interface import Search
from ballot.engines.nni import guard
from ballot.engines.nni.listed import Listed
from ballot.engines.nni.ports import is_free
from ballot.engines.nni.processes import end_processes
from ballot.engines.nni.profile import read_profile
from ballot.engines.nni.remote import REMOTE
from ballot.errors import UserError

GUARDED = "BALLOT_PUBLIC"  # is in the environment of a manager with the guard
STARTS = 3  # of a manager that does not start, for whatever reason
READY_S = 60.0  # for a manager to answer; NNI gives it four, which a busy machine may not have


def free_port(first: int, in_a_row: int = 1) -> int:
    """Return the first port from `first` on that nothing here listens on, nor on those after it."""
    free = 0
    for port in range(first, first + 100):
        free = free + 1 if is_free(port) else 0
        if free == in_a_row:
            return port + 1 - in_a_row
    raise UserError(f"port: none of {first} to {first + 99} is free; choose another with --port")


def start(config: object, port: int, extra: Mapping[str, str]) -> Listed:
    """Start NNI's manager; try again where it does not start.

    It outlives this process once its folder has a `search.json` (node/trials.js).
    """
    return _launch(config, None, port, {**extra, "BALLOT_STARTER": str(os.getpid())})


def resume(search: Search, port: int, extra: Mapping[str, str]) -> Listed:
    """Start a manager for a search that has none, from what NNI's database says of it."""
    from nni.experiment.config import ExperimentConfig

    params, _ = read_profile(search.folder)
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


def _launch(config: Any, known: str | None, port: int, extra: Mapping[str, str]) -> Listed:
    """Start a manager on the first free port, and another one where it dies of a fault of NNI's."""
    import logging

    logging.getLogger("nni").setLevel(logging.CRITICAL)
    config, failures = config.canonical_copy(), 0
    in_a_row = 2 if REMOTE in extra else 1
    while True:
        search = _new_search(config, known, free_port(port, in_a_row), secret=GUARDED in extra)
        try:
            return _begin(config, search, extra, resuming=known is not None)
        except KeyboardInterrupt:
            end_processes(search.id, search.folder, 0.0)
            raise
        except Exception as error:  # connection errors, JSON errors, RuntimeError: all of NNI's
            end_processes(search.id, search.folder, 0.0)
            lost = search.port != free_port(search.port or port, in_a_row)
            failures += not lost  # another program was faster; that the next port is free, it says
            if failures == STARTS:
                raise UserError(
                    f"NNI: its manager did not start ({error}); see {search.folder / 'log'}"
                ) from None
            time.sleep(0 if lost else 2)


def _new_search(config: Any, known: str | None, port: int, *, secret: bool) -> Listed:
    """Choose the id, the folder and the secret address of a search; no other user reads them."""
    from nni.experiment import management

    root = Path(config.experiment_working_directory)
    name = known or management.generate_experiment_id()
    for folder in (Path.home() / "nni-experiments", root / name):
        try:
            (folder / "log" if folder.name == name else folder).mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # the address stands in NNI's list, and in its logs
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made this user's own ({error.strerror}); "
                "remove it, or set experimentWorkingDirectory"
            ) from None
    # Without the guard it would stand in the list of processes.
    prefix = secrets.token_hex(16) if secret else None
    return Listed(name, root / name, port, None, prefix, time.time())


def _begin(config: Any, search: Listed, extra: Mapping[str, str], *, resuming: bool) -> Listed:
    """Start the manager of a search, and hand it what it is to do as soon as it listens."""
    from nni.experiment import RunMode, launcher, rest
    from nni.tools.nnictl.config_utils import Experiments

    action: object = "resume" if resuming else "create"
    words = launcher.NniManagerArgs(
        action, search.id, config, search.port or 0, False, False, None, None
    )
    link = search.folder.parent / "_latest"
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(search.id, target_is_directory=True)
    with _environment({**extra, "BALLOT_PREFIX": search.prefix or ""}):
        process = launcher._start_rest_server(words, RunMode.Detach)
    search.pid = process.pid
    _await_answer(process, search)
    Experiments().add_experiment(
        search.id,
        search.port,
        int(search.began * 1000),
        words.mode,
        config.experiment_name,
        pid=search.pid,
        logDir=words.experiments_directory,
        prefixUrl=search.prefix,
    )
    answer = rest.post(search.port, "/experiment", config.json(), search.prefix)
    if answer and answer["experiment_id"] != search.id:
        raise RuntimeError(f"port {search.port} is that of search {answer['experiment_id']}")
    return search


def _await_answer(process: subprocess.Popen[bytes], search: Listed) -> None:
    """Wait until a manager answers on its port; what another program answers there is not its."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}")
        if search.port in _ports_of(process.pid):
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                search.portal.ask("GET", "check-status")
                return
        time.sleep(0.1)
    raise RuntimeError(f"it does not answer within {READY_S:.0f} s")


def _ports_of(pid: int) -> set[int]:
    """Return the ports that a process listens on."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        ask = getattr(process, "net_connections", None) or process.connections  # before psutil 6
        return {each.laddr.port for each in ask("tcp") if each.status == psutil.CONN_LISTEN}
    return set()


@contextlib.contextmanager
def _environment(extra: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
