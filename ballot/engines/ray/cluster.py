"""The cluster as the driver uses it: tasks that are trials, and the receiver. Ray is met here.

Nothing is tried again by Ray itself (`max_retries=0`): what becomes of a trial whose node was lost
is the driver's to decide and to write down.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ballot.engines.ray.data import Part, Place, remove_data
from ballot.engines.ray.node import Over, run_trial
from ballot.engines.ray.receiver import Receiver
from ballot.engines.ray.sent import excludes
from ballot.errors import UserError
from ballot.values import Json, Values

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
REMOVE_S = 10.0  # for the nodes to remove the data that they were sent
CALLS = 10_000  # of the receiver at once: each trial that runs waits there for its orders
STARTS = 3  # of the receiver
RESTART_S = 2.0
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1",  # what is sent is .nniignore's matter
    "RAY_worker_niceness": "0",  # of a cluster that is started here: as any trial's on this machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How an attempt of a trial ended: as its task says, or as the cluster does."""

    trial: str
    attempt: int
    outcome: Json | None  # None where the task did not come to its end
    how: Literal["done", "lost", "crashed"] = "done"
    why: str = ""


class RayHome:
    """The way from a node to the receiver.

    A task that waits for Ray in its main thread lends its CPUs to another task meanwhile, which
    would be one trial too many. All that waits is therefore done in a second thread.
    """

    def __init__(self, actor: Any, trial: str, attempt: int) -> None:
        self._actor, self._trial, self._attempt = actor, trial, attempt
        self._thread = ThreadPoolExecutor(1)
        self._order = self._thread.submit(actor.orders.remote, trial, attempt).result()

    def _ask(self, method: str, *args: object) -> Any:
        def ask() -> Any:
            return load_ray().get(getattr(self._actor, method).remote(*args))

        return self._thread.submit(ask).result()

    def put(self, run: str, name: str, offset: int, piece: bytes) -> bool:
        """Send a piece of a file."""
        return self._ask("put", self._trial, self._attempt, run, name, offset, piece)

    def commit(
        self, run: str, names: Mapping[str, int], kept: list[str], small: Mapping[str, bytes]
    ) -> bool:
        """Say that files have been sent, and send the small ones."""
        told = run, dict(names), kept, dict(small)
        return self._ask("commit", self._trial, self._attempt, *told)

    def data_files(self) -> dict[str, int]:
        """Return the files of the data with their sizes."""
        files = self._ask("data_files", self._trial, self._attempt)
        if files is None:
            raise Over
        return files

    def data_piece(self, place: Place) -> tuple[list[Part], Place]:
        """Return a piece of the data, and where the next one begins."""
        piece = self._ask("data_piece", self._trial, self._attempt, place)
        if piece is None:
            raise Over
        return piece

    def here(self, run: str) -> dict[str, int]:
        """Return the files of a run at home."""
        return self._ask("here", run)

    def get(self, run: str, name: str, offset: int, size: int) -> bytes:
        """Fetch a piece of a file."""
        return self._ask("get", run, name, offset, size)

    def report(self, said: Values) -> bool:
        """Send words for the driver."""
        return self._ask("report", self._trial, self._attempt, dict(said))

    def order(self, patience: float) -> str | None:
        """Wait a moment for an order."""
        ray = load_ray()

        def wait() -> str | None:
            ready, _ = ray.wait([self._order], timeout=patience)
            return ray.get(ready[0]) if ready else None

        return self._thread.submit(wait).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)


def load_ray() -> Any:
    """Return Ray, whose types say less than it takes."""
    import ray

    return ray


def first_that_lives(ray: Any, start: Callable[[], Any]) -> Any:
    """Start the receiver until it answers.

    Ray removes what it had unpacked of the code, and unpacks it again, when another node of the
    same host with the same folder first needs it; a worker that starts then finds no code.
    """
    for attempt in range(1, STARTS + 1):
        actor = start()
        try:
            ray.get(actor.news.remote(0.0))
        except ray.exceptions.ActorDiedError:
            if attempt == STARTS:
                raise
            time.sleep(RESTART_S)
        else:
            return actor
    raise AssertionError("unreachable")


def trial_task(job: Json, actor: Any) -> Json:
    """Run a trial; this is what Ray calls on a node."""
    home = RayHome(actor, job["id"], job["attempt"])
    try:
        return run_trial(job, home)
    finally:
        home.close()


class Cluster:
    """A connection to a Ray cluster, or a cluster of this machine alone (`address: local`)."""

    def __init__(self, spec: Values) -> None:
        """Connect as the driver is told; what is wrong is a `UserError` in one line."""
        ray = self._ray = load_ray()
        self._request = request_of(spec["resources"])
        self._search, self._data = spec["search"], spec.get("data")
        self._running: dict[Any, tuple[str, int]] = {}
        connect(spec["address"], Path(spec["code"]))
        here = ray.get_runtime_context().get_node_id()
        kind = ray.remote(num_cpus=0, max_concurrency=CALLS)(Receiver)
        receiver = kind.options(scheduling_strategy=self._on(here))
        self._actor = first_that_lives(ray, lambda: receiver.remote(spec["outputs"], self._data))
        self._task: Any = ray.remote(max_retries=0)(trial_task)
        self._news = self._actor.news.remote()

    def submit(self, job: Json) -> None:
        """Start a trial wherever there is room for it, now or later."""
        self._ray.get(self._actor.expect.remote(job["id"], job["attempt"]))
        task = self._task.options(
            **self._request,
            scheduling_strategy="SPREAD",
            name=f"ballot {job['search']} {job['sequence']}",
        )
        self._running[task.remote(job, self._actor)] = (job["id"], job["attempt"])

    def wait(self, patience: float) -> tuple[list[Json], list[Ended]]:
        """Return the news of trials and the ends of attempts, as soon as there are any."""
        ready, _ = self._ray.wait([self._news, *self._running], timeout=patience)
        news: list[Json] = []
        ends: list[Ended] = []
        for ref in ready:
            if ref == self._news:
                news += self._ray.get(ref)
                self._news = self._actor.news.remote()
            else:
                ends.append(self._end(ref))
        return news, ends

    def _end(self, ref: Any) -> Ended:
        trial, attempt = self._running.pop(ref)
        errors = self._ray.exceptions
        try:
            outcome = self._ray.get(ref)
        except (
            errors.OutOfMemoryError,
            errors.RayTaskError,
            errors.RuntimeEnvSetupError,
        ) as error:
            return Ended(trial, attempt, None, "crashed", one_line(error))
        except (errors.NodeDiedError, errors.WorkerCrashedError, errors.LocalRayletDiedError) as e:
            how = self._how_it_died(e)
            return Ended(trial, attempt, None, how, one_line(e))
        except errors.RayError as error:
            return Ended(trial, attempt, None, "lost", one_line(error))
        finally:
            self._actor.forget.remote(trial)
        return Ended(trial, attempt, outcome)

    def _how_it_died(self, error: Exception) -> Literal["lost", "crashed"]:
        crashed = isinstance(error, self._ray.exceptions.WorkerCrashedError)
        return "crashed" if crashed and "node" not in str(error).lower() else "lost"

    def order(self, trial: str, word: str) -> None:
        """Tell a trial to stop; one that waits for its turn never begins."""
        self._actor.order.remote(trial, word)

    def withdraw(self, trial: str) -> None:
        """Take back a trial that has not begun."""
        for ref, (known, _) in list(self._running.items()):
            if known == trial:
                self._running.pop(ref)
                self._actor.forget.remote(trial)
                with contextlib.suppress(Exception):
                    self._ray.cancel(ref)

    def nodes(self) -> list[Json]:
        """Return the nodes: their ids, names, whether they live, and what they have."""
        known = self._ray.nodes()
        hosts = Counter(node["NodeManagerHostname"] for node in known if node["Alive"])
        return [
            {
                "id": node["NodeID"],
                "name": name_of(node, hosts),
                "alive": bool(node["Alive"]),
                "has": {k: v for k, v in node["Resources"].items() if k in ("CPU", "GPU")},
            }
            for node in known
        ]

    def head(self) -> str:
        """Return where the head of the cluster listens."""
        return str(self._ray.get_runtime_context().gcs_address)

    def close(self) -> None:
        """Leave the cluster; what still runs of this search ends, and its data are removed."""
        if self._data is not None:
            with contextlib.suppress(Exception):  # a cluster that is gone
                self._remove_data()
        self._ray.shutdown()

    def _remove_data(self) -> None:
        task = self._ray.remote(num_cpus=0, max_retries=0)(remove_data)
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        removed = [
            task.options(scheduling_strategy=self._on(node)).remote(self._search) for node in nodes
        ]
        self._ray.wait(removed, num_returns=len(removed), timeout=REMOVE_S)

    def _on(self, node: str) -> Any:
        """Return what starts a task on one node."""
        strategies = self._ray.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def request_of(resources: Values) -> Json:
    """Return what Ray is asked for a trial; without a word it would give one CPU."""
    asked: Json = {"num_cpus": resources["cpus"], "num_gpus": resources["gpus"]}
    if resources["memory"]:
        asked["memory"] = resources["memory"]
    return asked


def name_of(node: Values, hosts: Mapping[str, int]) -> str:
    """Return a node's name: its host's, and its id where several nodes are of one host."""
    host = str(node["NodeManagerHostname"])
    return host if hosts.get(host, 0) <= 1 else f"{host} ({node['NodeID'][:6]})"


def connect(address: str, code: Path) -> None:
    """Connect this process to a cluster; nothing is sent to Ray's makers, no page is served."""
    os.environ.update(QUIET)
    ray = load_ray()
    environment = {"working_dir": str(code), "excludes": excludes(code)}
    options: dict[str, Any] = {
        "runtime_env": environment,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address == "local":
        options["include_dashboard"] = False
        make_token()
    try:
        ray.init(address=address, **options)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, AuthenticationError
        raise UserError(f"ray: {address} cannot be used ({one_line(error)})") from None


def make_token() -> None:
    """Make this user's token where there is none: one that Ray makes everybody here could read."""
    path = Path.home() / ".ray" / "auth_token"
    if path.exists() or any(name in os.environ for name in TOKENS):
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def one_line(error: BaseException) -> str:
    """Return the line of an error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if type(error).__name__ == "RayTaskError" and lines else " ".join(lines)
    return said[:400] or type(error).__name__
