"""The engines by their names, and the searches that any of them has started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ballot.engines.interface import Engine, Search
from ballot.engines.trial import Trial
from ballot.errors import UserError, suggest

NAMES = ("nni", "ray")
DEFAULT = "nni"


class HasSearches(Protocol):
    """What knows searches: an engine, or all of them."""

    def known_searches(self) -> Sequence[Search]:
        """Return every search that it has records of, the newest first."""


def load_engine(name: str) -> Engine:
    """Return an engine by its name; what it needs is imported here."""
    if name == "nni":
        from ballot.engines.nni.engine import NniEngine

        return NniEngine()
    if name == "ray":
        from ballot.engines.ray.engine import RayEngine

        return RayEngine()
    raise UserError(f"engine: there is no {name!r}{suggest(name, NAMES)}")


def engine_of_config(path: Path) -> Engine:
    """Return the engine that a configuration is written for."""
    from ballot.engines.ray.config import is_for_ray

    return load_engine("ray" if is_for_ray(path) else DEFAULT)


class AnyEngine:
    """All engines, for what concerns a search that is on record: each is its own engine's."""

    def __init__(self, engines: Sequence[Engine] = ()) -> None:
        self.engines = engines or [load_engine(name) for name in NAMES]

    def known_searches(self) -> Sequence[Search]:
        """Return every search of any engine, the newest first."""
        found = [search for engine in self.engines for search in engine.known_searches()]
        return sorted(found, key=lambda search: search.began, reverse=True)

    def of(self, search: Search) -> Engine:
        """Return the engine of a search."""
        for engine in self.engines:
            if any(each.id == search.id for each in engine.known_searches()):
                return engine
        return load_engine(DEFAULT)


def find_search(engine: HasSearches, search_id: str) -> Search:
    """Return the search of that id."""
    searches = {search.id: search for search in engine.known_searches()}
    if search_id not in searches:
        raise UserError(f"search {search_id!r}: is not known; search.py --list shows all")
    return searches[search_id]


def newest_search(engine: HasSearches, config: Path | None) -> Search:
    """Return the newest search of a configuration, or of this folder without one."""
    for search in engine.known_searches():
        note = search.note()
        same = (
            note.get("config") == str(config) if config else note.get("folder") == str(Path.cwd())
        )
        if note and same:
            return search
    where = config or "this folder"
    raise UserError(f"resume: there is no search of {where}; search.py --list shows what there is")


def current_trial() -> Trial:
    """Ask the engine that started this process for its trial; to be called once, first of all."""
    from ballot.engines.nni import trial as nni
    from ballot.engines.ray import trial as ray

    return ray.find_trial() or nni.find_trial() or Trial()


def outside_trials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what an engine tells its trials."""
    from ballot.engines.nni import trial as nni
    from ballot.engines.ray import trial as ray

    told = (nni.TOLD, ray.TOLD)
    return {name: value for name, value in environment.items() if not name.startswith(told)}
