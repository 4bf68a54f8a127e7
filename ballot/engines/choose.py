"""The engines by their names, and the searches that any of them has started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ballot.engines.interface import Engine, Search
from ballot.engines.trial import Trial
from ballot.errors import UserError, suggest

NAMES = ("nni",)
DEFAULT = "nni"


def load_engine(name: str) -> Engine:
    """Return an engine by its name; what it needs is imported here."""
    if name == "nni":
        from ballot.engines.nni.engine import NniEngine

        return NniEngine()
    raise UserError(f"engine: there is no {name!r}{suggest(name, NAMES)}")


def find_search(engine: Engine, search_id: str) -> Search:
    """Return the search of that id."""
    searches = {search.id: search for search in engine.known_searches()}
    if search_id not in searches:
        raise UserError(f"search {search_id!r}: is not known; search.py --list shows all")
    return searches[search_id]


def newest_search(engine: Engine, config: Path | None) -> Search:
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
    from ballot.engines.nni.trial import find_trial

    return find_trial() or Trial()


def outside_trials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what an engine tells its trials."""
    from ballot.engines.nni.trial import TOLD

    return {name: value for name, value in environment.items() if not name.startswith(TOLD)}
