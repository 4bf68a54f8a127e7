"""Ray as an engine of searches: trials are tasks of a cluster, and a driver here looks after them.

Only `cluster.py`, which the driver imports, loads Ray itself (docs/clusters.md).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ballot.engines.interface import Draft, Launch, Limits, Plan, Search, Sketch
from ballot.engines.planned import write_planned
from ballot.engines.ray import asked, config, control
from ballot.engines.ray.draft import RayDraft, Settings
from ballot.engines.ray.names import new_id
from ballot.engines.ray.search import LOG, ROOT, SPEC, RaySearch, known_searches
from ballot.errors import UserError
from ballot.machines.machine import Machine
from ballot.problems import Problem
from ballot.runs.files import write_json
from ballot.training.options import LISTS
from ballot.values import Values

READY_S = 120.0  # for the driver to be connected
CODE = Path(__file__).resolve().parents[3]


class RayEngine:
    """Ray, its trials wherever the cluster has room for them."""

    name = config.PLATFORM

    def write_config(self, path: Path, sketch: Sketch) -> None:
        """Write a configuration; it names the cluster of RAY_ADDRESS, or one on this machine."""
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address != "local":
            sketch = replace(sketch, command=named_from_code(sketch.command, sketch.code))
        write_planned(
            path,
            sketch,
            tuner={"name": config.NAMES["tuner"]},
            assessor={"name": config.NAMES["assessor"]},
            service={"platform": config.PLATFORM, "address": address},
        )

    def read(self, path: Path, limits: Limits, *, guarded: bool) -> tuple[Draft, list[Problem]]:  # noqa: ARG002
        """Read a configuration; a file that is none is an error."""
        outline, problems = config.outline(config.read_content(path), path)
        return RayDraft(path, outline, limits), problems

    def machines_in(self, path: Path) -> list[Machine]:  # noqa: ARG002
        """Return the machines that are reached over ssh: none."""
        return []

    def known_searches(self) -> Sequence[RaySearch]:
        """Return every search on Ray of this user, the newest first."""
        return known_searches()

    def start(self, plan: Plan, launch: Launch, note: Values) -> RaySearch:
        """Start a driver for a new search, and write down what it takes to go on with it."""
        assert isinstance(plan.settings, Settings)
        refuse_open(plan.settings.facts, launch)
        folder = Path.home() / ROOT / new_id()
        folder.mkdir(mode=0o700, parents=True)
        (folder / "began").write_text(str(time.time()))
        facts = plan.settings.facts
        address = "local" if facts is None else facts.address
        told = {
            "search": folder.name,
            "address": address,
            "data": None if launch.data is None else str(launch.data),
        }
        write_json(folder / SPEC, {**plan.settings.spec, **told})
        search = RaySearch(folder)
        search.write_note(**note)
        return launch_driver(search, is_open=facts is not None and facts.open)

    def resume(self, search: Search, plan: Plan, launch: Launch) -> RaySearch:  # noqa: ARG002
        """Start a driver that goes on with a search, on whatever cluster is there now."""
        return self._again(search, launch, posted=None, again=None)

    def run_more(
        self,
        search: Search,
        plan: Plan,  # noqa: ARG002
        launch: Launch,
        parameters: Sequence[Values],
        again: Sequence[str],
    ) -> RaySearch:
        """Run trials under a driver that asks no tuner."""
        posted = [dict(values) for values in parameters]
        return self._again(search, launch, posted=posted, again=list(again))

    def _again(self, search: Search, launch: Launch, *, posted: object, again: object) -> RaySearch:
        assert isinstance(search, RaySearch)
        spec = search.spec()
        if spec.get("data") and not Path(spec["data"]).is_dir():
            raise UserError(f"sync_data: {spec['data']} is not there any more; put it back")
        address = os.environ.get("RAY_ADDRESS") or spec["resources"]["address"]
        is_open = False
        if address != "local":  # the cluster may be another one by now
            facts = asked.ask_cluster(address)
            refuse_open(facts, launch)
            address, is_open = facts.address, facts.open
        told = {"posted": posted, "again": again, "address": address}
        write_json(search.folder / SPEC, {**spec, **told})
        return launch_driver(RaySearch(search.folder), is_open=is_open)


def named_from_code(command: str, code: Path) -> str:
    """Name the lists of rows that are in the folder of the code as they are named on a node."""
    words = shlex.split(command)
    for place, word in enumerate(words[:-1], start=1):
        path = Path(words[place])
        if word.removeprefix("--") in LISTS and path.is_relative_to(code):
            words[place] = str(path.relative_to(code))
    return shlex.join(words)


def refuse_open(facts: asked.Facts | None, launch: Launch) -> None:
    """Refuse a cluster that lets everybody in, or a Ray of which it is known how to get in."""
    version = asked.installed() or (0, 0)
    old = f"Ray {'.'.join(map(str, version))} has CVE-2025-62593" if version < asked.OLDEST else ""
    no_token = (
        "the cluster lets in whoever reaches its ports" if facts is not None and facts.open else ""
    )
    why = old or no_token
    if why and not launch.public:
        remedy = "update Ray" if old else "start the cluster with RAY_AUTH_MODE=token"
        raise UserError(f"ray: {why}; {remedy}, or --public runs it all the same")
    if why:
        print(f"WARNING: --public: {why}: whoever does can run programs on it", flush=True)


def launch_driver(search: RaySearch, *, is_open: bool) -> RaySearch:
    """Start the driver of a search, which goes on without this process.

    It shows no token to a cluster that asks for none (`is_open`).
    """
    log = search.folder / LOG
    log.parent.mkdir(exist_ok=True)
    control.take(search.folder)  # what an earlier driver was still to do
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_AUTH_MODE"] = "disabled" if is_open else "token"
    command = [sys.executable, "-m", "ballot.engines.ray.driver", str(search.folder)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            cwd=CODE,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_S
    try:
        while search.status().state in ("starting", "gone", "error"):
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    except BaseException:
        search.kill()
        raise
    if process.poll() is not None:
        why = search.tuner_error() or search_words(log)
        raise UserError(why if ": " in why else f"ray: the driver of the search ended ({why})")
    return search


def search_words(log: Path) -> str:
    """Return the last line of a driver's log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"without a word; see {log}"
