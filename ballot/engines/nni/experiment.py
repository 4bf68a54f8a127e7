"""Searches of this user: NNI's list of them, their processes, and what their managers answer."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # comes with NNI

from ballot.engines.nni.database import query_database
from ballot.engines.nni.processes import _await_end, _is_manager, _kill, end_processes
from ballot.errors import UserError
from ballot.runs.files import write_json
from ballot.runs.trials import NO_WORD
from ballot.wording import last_lines

ANSWER_S = 5.0  # a manager that is well answers within milliseconds
STOP_S = 90.0  # NNI gives itself 60 s to shut down
WRITE_S = 20.0  # for a trial to write what it has, as in trials.js
NOTE = "search.json"  # what search.py keeps of a search in NNI's folder of it


@dataclass
class Search:
    """A search, whether its manager runs or not."""

    id: str
    folder: Path  # NNI's: database, logs, words of the trials
    port: int | None = None
    pid: int | None = None  # of NNI's manager
    prefix: str | None = None
    began: float = 0.0  # seconds since the epoch

    @property
    def database(self) -> Path:
        """NNI's database of this search."""
        return self.folder / "db" / "nni.sqlite"

    @property
    def url(self) -> str:
        """Address of its portal, while it runs."""
        return f"http://127.0.0.1:{self.port}" + (f"/{self.prefix}" if self.prefix else "")

    def manager(self) -> psutil.Process | None:
        """Return its manager if that process lives: a pid alone may by now be another's."""
        if self.pid is None:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.status() != psutil.STATUS_ZOMBIE and _is_manager(process, self.id):
                return process
        return None

    def status(self) -> tuple[str, list[str]]:
        """Return NNI's word (RUNNING, DONE, ERROR ...) and its errors.

        GONE stands for a manager that does not run, SILENT for one that does not answer.
        """
        if self.manager() is None:
            return "GONE", []
        try:
            answer = self.ask("GET", "check-status")
            return answer["status"], list(answer["errors"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return ("SILENT" if self.manager() else "GONE"), []

    def ask(self, method: str, what: str, body: Any = None) -> Any:
        """Ask the manager's REST interface; `OSError` where it refuses or does not answer."""
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

    def raise_limits(self, changes: Mapping[str, Any]) -> None:
        """Tell a running manager of new limits, which it writes down itself."""
        kinds = {
            "maxTrialNumber": "MAX_TRIAL_NUM",
            "maxExperimentDuration": "MAX_EXEC_DURATION",
            "trialConcurrency": "TRIAL_CONCURRENCY",
        }
        for key, value in changes.items():
            profile = self.ask("GET", "experiment")
            profile["params"][key] = value
            self.ask("PUT", f"experiment?update_type={kinds[key]}", profile)

    def cancel(self, trial_id: str) -> None:
        """End one trial; it is told so and has some seconds to write."""
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may take its time
            self.ask("DELETE", f"trial-jobs/{trial_id}")

    def stop(self, patience: float = STOP_S) -> None:
        """End the trials, which write what they have, and the manager, and all they left."""
        manager = self.manager()
        if manager is not None:
            try:
                self.ask("DELETE", "experiment")
                _await_end(manager, patience)
            except (OSError, http.client.HTTPException):  # it hangs, and will listen to a kill
                # only; its trials go first, since a report to one that is gone crashes them.
                end_processes(self.id, self.folder, WRITE_S)
            _kill(manager)
        end_processes(self.id, self.folder, WRITE_S)

    def kill(self) -> None:
        """End everything at once; what the trials have not written is lost."""
        if manager := self.manager():
            _kill(manager)
        end_processes(self.id, self.folder, 0.0)

    def last_words(self, trial_id: str, lines: int = 1) -> str:
        """Return the last lines that a local trial wrote before it ended."""
        for name in ("trial.stderr", "trial.stderr.first", "trial.log", "trial.stdout"):
            for path in self.folder.glob(f"environments/*/trials/{trial_id}/{name}"):
                if said := last_lines(path, lines):
                    return said
        return NO_WORD

    def retries(self) -> dict[str, str]:
        """Return the trials that run a second time, with the reason (ballot/engines/nni/node/trials.js)."""
        with contextlib.suppress(OSError):
            said = (self.folder / "log" / "nnictl_stderr.log").read_text("utf-8", "replace")
            return dict(re.findall(r"\[ballot trials\] trial (\w+) (.+?); it runs once more", said))
        return {}

    def tuner(self) -> psutil.Process | None:
        """Return the process in which NNI runs the tuner."""
        manager = self.manager()
        with contextlib.suppress(psutil.Error):
            # NNI starts it through a shell, which stays or not.
            for child in manager.children(recursive=True) if manager else []:
                if "--exp_params" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
        return None

    def tuner_words(self) -> str:
        """Return the error that the tuner wrote last, or nothing."""
        for name in ("dispatcher.log", "nnictl_stderr.log"):
            lines = last_lines(self.folder / "log" / name, 400).splitlines()
            errors = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
            if errors:
                return errors[-1]
        return ""

    def note(self) -> dict[str, Any]:
        """Return what search.py wrote down of it; nothing where nnictl started it."""
        try:
            return json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write_note(self, **facts: Any) -> None:
        """Write down what `--resume` has to know."""
        write_json(self.folder / NOTE, facts)

    def amend_note(self, **facts: Any) -> None:
        """Write down something more."""
        self.write_note(**{**self.note(), **facts})

    def profile(self) -> tuple[dict[str, Any], float]:
        """Return NNI's configuration of it as it stands, and the seconds it has run."""
        query = "SELECT params, execDuration FROM ExperimentProfile ORDER BY revision DESC LIMIT 1"
        for params, seconds in query_database(self.database, query):
            with contextlib.suppress(ValueError, TypeError):  # a database that was cut
                known = json.loads(params)
                if isinstance(known, dict):
                    return known, float(seconds or 0)
        raise UserError(f"{self.folder}: holds no search that can be read")

    def change_profile(self, params: Mapping[str, Any]) -> None:
        """Write a configuration for the next manager, while none runs."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=10)) as db, db:
            db.execute(
                "UPDATE ExperimentProfile SET params = ? WHERE revision = "
                "(SELECT MAX(revision) FROM ExperimentProfile)",
                (json.dumps(params),),
            )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hold the search against a second search.py that would watch and end it too."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise UserError(
                f"search {self.id}: another search.py watches it already; "
                f"--status {self.id} shows how it goes"
            ) from None
        finally:
            os.close(descriptor)


def known_searches() -> list[Search]:
    """Return every search in NNI's list of this user, the newest first."""
    path = Path.home() / "nni-experiments" / ".experiment"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = [
        Search(
            key,
            Path(entry["logDir"], key),
            entry.get("port"),
            entry.get("pid"),
            entry.get("prefixUrl"),
            entry.get("startTime", 0) / 1000,
        )
        for key, entry in entries.items()
        if entry.get("logDir")
    ]
    found = [search for search in found if search.database.exists()]
    return sorted(found, key=lambda search: search.began, reverse=True)


def find_search(wanted: str) -> Search:
    """Return the search of that id."""
    found = {search.id: search for search in known_searches()}
    if wanted not in found:
        raise UserError(f"search {wanted!r}: is not in NNI's list; search.py --list shows it")
    return found[wanted]


def newest_search(config: Path | None) -> Search:
    """Return the newest search of a configuration, or of this folder without one."""
    for search in known_searches():
        note = search.note()
        if note and (
            note.get("config") == str(config) if config else note.get("folder") == str(Path.cwd())
        ):
            return search
    where = config or "this folder"
    raise UserError(f"resume: there is no search of {where}; search.py --list shows what there is")
