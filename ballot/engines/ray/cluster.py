"""The cluster as the driver uses it: tasks that are trials, and the receiver. Ray is met here.

Nothing is tried again by Ray itself (`max_retries=0`): what becomes of a trial whose node was lost
is the driver's to decide and to write down.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ballot.engines.ray.node import run_trial
from ballot.engines.ray.receiver import Receiver
from ballot.engines.ray.sent import excludes
from ballot.errors import UserError
from ballot.values import Json, Values

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
CALLS = 10_000  # of the receiver at once: each trial that runs waits there for its orders
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

    def commit(self, run: str, names: Mapping[str, int], kept: list[str]) -> bool:
        """Say that files have been sent."""
        return self._ask("commit", self._trial, self._attempt, run, dict(names), kept)

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


def trial_task(job: Json, actor: Any) -> Json:
    """Run a trial; this is what Ray calls on a node."""
    home = RayHome(actor, job["id"], job["attempt"])
    try:
        return run_trial(job, home)
    finally:
        home.close()


class Cluster:
    """A connection to a Ray cluster, or a cluster of this machine alone (`address: local`)."""

    def __init__(self, address: str, code: Path, outputs: Path, resources: Values) -> None:
        """Connect; what is wrong is a `UserError` in one line."""
        ray = self._ray = load_ray()
        self._resources = dict(resources)
        self._running: dict[Any, tuple[str, int]] = {}
        connect(address, code)
        here = ray.get_runtime_context().get_node_id()
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        kind = ray.remote(num_cpus=0, max_concurrency=CALLS)(Receiver)
        self._actor = kind.options(scheduling_strategy=affinity(here, soft=False)).remote(
            str(outputs)
        )
        self._task: Any = ray.remote(max_retries=0)(trial_task)
        ray.get(self._actor.news.remote(0.0))  # it is there
        self._news = self._actor.news.remote()

    def submit(self, job: Json) -> None:
        """Start a trial wherever there is room for it, now or later."""
        self._ray.get(self._actor.expect.remote(job["id"], job["attempt"]))
        wanted = {
            "num_cpus": self._resources["cpus"],
            "num_gpus": self._resources["gpus"],
            "memory": self._resources["memory"],
        }
        task = self._task.options(
            **{key: value for key, value in wanted.items() if value},
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
        """Leave the cluster; what still runs there of this search ends."""
        self._ray.shutdown()


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
