"""What is known of a search before its first trial: the script's own options, earlier runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from ballot.config.schema import COMPONENTS, OWN_FIELDS
from ballot.errors import UserError
from ballot.runs.folder import read_config, read_result
from ballot.tuning.space import Key, Point, Space, is_whole, locate
from ballot.values import Values

log = logging.getLogger(__name__)


def defaults_of(config: Values, space: Space) -> Point:
    """Return the options of a trial, moved into the search space.

    What has no default, and a name that is none of the choices, is missing.
    """
    return config_point(space, config, clip=True)


def earlier_runs(
    folders: Sequence[Path], space: Space, mode: str
) -> Iterator[tuple[Point, str, float | None]]:
    """Yield the runs below `folders` that lie in the space: the point, how it ended, its score.

    Left out are runs that have not ended, those of another aim (`mode` is `min` or `max`), and
    those that lack a value, or have one outside of the space.
    """
    for folder in folders:
        for file in sorted({*folder.glob("result.json"), *folder.glob("*/result.json")}):
            result = read_result(file.parent)
            state, score = result.get("status"), result.get("score")
            if state not in ("done", "stopped", "failed") or result.get("mode", mode) != mode:
                continue
            try:
                point = config_point(space, read_config(file.parent))
            except UserError as error:
                log.warning("%s", error)
                continue
            if is_whole(space, point) and (score is not None or state == "failed"):
                yield point, state, score


def config_point(space: Space, config: Values, *, clip: bool = False) -> Point:
    """Return where the values of a config lie in the search space; what does not is missing.

    `clip` moves a number that lies outside of its range to the nearest end.
    """
    return locate(space, lambda key: _look_up(key, config), clip=clip)


def _look_up(key: Key, config: Values) -> object:
    head, *inner = map(str, key)
    if inner:  # (component, number of the choice, option)
        name = inner[-1]
        return (
            config.get(name) if name in OWN_FIELDS.get(head, ()) else _argument(head, name, config)
        )
    head, _, rest = head.replace("-", "_").partition(".")
    return _argument(head, rest, config) if rest else config.get(head)


def _argument(head: str, name: str, config: Values) -> object:
    return (config.get(f"{head}_args" if head in COMPONENTS else head) or {}).get(name)
