"""NNI's manager by its REST interface: its status, its limits, its trials."""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import dataclass
from typing import Any

from ballot.engines.interface import Limits, SearchState, Status

ANSWER_S = 5.0  # a manager that is well answers within milliseconds
FAILURES = (OSError, http.client.HTTPException)

STATES: dict[str, SearchState] = {
    "INITIALIZED": "starting",
    "RUNNING": "running",
    "NO_MORE_TRIAL": "all_started",
    "TUNER_NO_MORE_TRIAL": "exhausted",
    "STOPPING": "stopping",
    "STOPPED": "done",
    "DONE": "done",
    "ERROR": "error",
}


@dataclass(frozen=True)
class Portal:
    """Where a manager listens, on loopback; `prefix` is its secret."""

    port: int | None
    prefix: str | None = None

    @property
    def url(self) -> str:
        """Its address for a browser."""
        return f"http://127.0.0.1:{self.port}" + (f"/{self.prefix}" if self.prefix else "")

    def ask(self, method: str, what: str, body: object = None) -> Any:
        """Ask the manager; `OSError` where it refuses or does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        root = f"/{self.prefix.strip('/')}" if self.prefix else ""
        headers = {"Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        try:
            connection.request(method, f"{root}/api/v1/nni/{what}", text, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise OSError(f"NNI answered {response.status} to {method} {what}")
        return json.loads(answer) if answer.strip() else None

    def status(self) -> Status | None:
        """Return how the search stands; None where nothing answers."""
        try:
            answer = self.ask("GET", "check-status")
            return Status(STATES[answer["status"]], tuple(answer["errors"]))
        except (*FAILURES, ValueError, KeyError, TypeError):
            return None

    def change(self, limits: Limits) -> None:
        """Tell a running manager of new limits, which it writes down itself."""
        seconds = None if limits.max_seconds is None else f"{limits.max_seconds:g}s"
        for kind, key, value in (
            ("MAX_TRIAL_NUM", "maxTrialNumber", limits.max_trials),
            ("MAX_EXEC_DURATION", "maxExperimentDuration", seconds),
            ("TRIAL_CONCURRENCY", "trialConcurrency", limits.concurrency),
        ):
            if value is not None:
                profile = self.ask("GET", "experiment")
                profile["params"][key] = value
                self.ask("PUT", f"experiment?update_type={kind}", profile)

    def cancel(self, trial_id: str) -> None:
        """End one trial; it is told so and has some seconds to write."""
        with contextlib.suppress(*FAILURES):  # it may take its time
            self.ask("DELETE", f"trial-jobs/{trial_id}")
