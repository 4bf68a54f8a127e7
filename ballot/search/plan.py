"""A search planned from a folder of images and a time: what is tried, for how long, and when not.

    the data, the machine, the time -> portfolio, search space, epochs, concurrency -> config.yml

What was decided is written as the files that a person would write, and may be edited and run again.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.layers import flatten, merge
from ballot.config.schema import Config
from ballot.cpus import count_cores
from ballot.engines.interface import Engine, Sketch
from ballot.errors import UserError
from ballot.names import resolved
from ballot.runs.files import write_json
from ballot.search.time_budget import BEGIN_S, Budget
from ballot.training.options import LISTS
from ballot.training.packaged import packaged_file
from ballot.training.recipes import Situation, look, with_recipe
from ballot.tuning import portfolio
from ballot.tuning.portfolio import LITE, Portfolio, Values
from ballot.values import Json, Layer
from ballot.wording import clock, plural, span

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "searches"
REFIT_SHARE = 0.45  # of the trials' time, for training the best again on all rows
REFIT_FROM_S = 240.0  # a shorter search spends all of its time on trials
LOOK_S = 20.0  # from the command to the end of the plan
FEWEST = 4  # trials that are fine-tuned: with fewer the epochs are cut instead
LEAST_EPOCHS = 4
ASHA_FROM = 10  # trials: of fewer none is stopped early, and all of them vote
ROOMY = 8  # trials that are fine-tuned: time for more of them is spent on larger images first
LONG_FROM = 6  # trials: one of them may be as long as three
LARGEST = 320  # pixels that a plan goes to
SPARE = 1.15  # trials that run at once slow each other down


@dataclass(frozen=True)
class Preset:
    """How much of the time goes into each trial."""

    trials: int  # fine-tuned trials that the search shall have time for at least
    epochs: float  # factor of the recipe's epochs, where the time allows it


PRESETS = {"fast": Preset(8, 0.6), "medium": Preset(FEWEST, 1.0), "best": Preset(FEWEST, 1.5)}


@dataclass(frozen=True)
class Request:
    """What a person asks for; None means that nothing was said."""

    data_dir: Path
    options: Sequence[str] = ()  # of train.py, as they were typed
    max_seconds: float | None = None
    preset: str = "medium"
    concurrency: int | None = None
    max_trials: int | None = None
    refit: bool = True


@dataclass(frozen=True)
class Fixed:
    """What the command line fixes, and what the recipes make of the data with it."""

    layer: Layer
    base: Config
    probe: Config
    situation: Situation | None  # None where no recipe applies: digits and the like
    sentence: str

    @property
    def options(self) -> set[str]:
        """The names of the options that are fixed."""
        return {key for key, _ in flatten(self.layer)}


@dataclass(frozen=True)
class Prospect:
    """What is known before the first trial: the recipe's configurations and what they cost."""

    fixed: Fixed
    trial_s: float  # of the base configuration, as one of `concurrency`
    concurrency: int
    mode: str  # of the monitored score: max or min
    above: Sequence[Values] = ()  # networks and sizes of images that are above a bound


@dataclass(frozen=True)
class Schedule:
    """How the time is divided, in seconds."""

    total: float
    trials: float  # until the search's trials end
    refit: float  # for training the best again
    epochs: int
    image_size: int | None  # pixels of a fine-tuned trial; None where the network decides
    expected: int  # trials that are fine-tuned


def read_request(request: Request) -> Fixed:
    """Return the fixed options, and what the recipes make of the data with them."""
    layer, _ = parse_command_line(build_parser("search.py", ""), options_of(request))
    layers, sentence = with_recipe([layer])
    base, _ = merge(layers)
    probe, _ = merge(with_recipe([layer, Layer("plan", {"recipe": "probe"})])[0])
    config, origin = merge([layer])
    return Fixed(layer, base, probe, look(config, origin, Path()), sentence)


def networks_for(situation: Situation, base: Config) -> list[str]:
    """Return the networks that are tried: the one that was named, or all with installed weights."""
    if situation.model is not None or base.model not in LITE:
        return [base.model]
    return [base.model, *(n for n in LITE if n != base.model and packaged_file(n) is not None)]


def schedule_of(prospect: Prospect, request: Request) -> Schedule:
    """Divide the time, and cut the epochs where it is short."""
    preset, base = PRESETS[request.preset], prospect.fixed.base
    wanted = max(1, round(base.epochs * preset.epochs))
    total = request.max_seconds or proposed_seconds(prospect)
    usable = total - LOOK_S - BEGIN_S - Budget(total, 0.0).ending
    refit = request.refit and total >= REFIT_FROM_S
    trials = usable * (1 - REFIT_SHARE) if refit else usable
    second = prospect.trial_s / base.epochs  # of an epoch
    affordable = trials * prospect.concurrency / (second * SPARE)  # epochs in all
    epochs = min(wanted, max(LEAST_EPOCHS, int(affordable / preset.trials)))
    if affordable < LEAST_EPOCHS / 2:
        raise UserError(
            f"--max_duration: {span(total)} are too short: an epoch of one trial takes "
            f"{span(second)}; give more time, or a smaller --image_size"
        )
    expected = affordable / epochs
    size, growth = _grown(prospect.fixed, expected)
    return Schedule(
        total, trials, usable - trials, epochs, size, expected=max(1, int(expected / growth))
    )


def _grown(fixed: Fixed, expected: float) -> tuple[int | None, float]:
    """Return the pixels that the time allows, and how many times the recipe's a trial then takes.

    Pixels are worth more than trials (docs/recipes.md), up to those that the photos have.
    """
    size, situation = fixed.base.image_size, fixed.situation
    # Larger images take longer, and the bound holds for those of the recipe.
    is_free = "image_size" not in fixed.options and fixed.base.max_latency is None
    if size is None or situation is None or not situation.pretrained or not is_free:
        return size, 1.0
    most = min(LARGEST, portfolio.stepped(situation.data.side))
    larger = min(most, portfolio.stepped(size * (expected / ROOMY) ** 0.5))
    return (larger, (larger / size) ** 2) if larger > size else (size, 1.0)


def proposed_seconds(prospect: Prospect) -> float:
    """Return a sensible time where none was given: about a dozen trials and their refit."""
    needed = 12 * prospect.trial_s * SPARE / prospect.concurrency / (1 - REFIT_SHARE)
    for seconds in (600.0, 1800.0, 3600.0, 7200.0):
        if needed <= seconds:
            return seconds
    return 4 * 3600.0


def portfolio_of(prospect: Prospect, schedule: Schedule) -> Portfolio:
    """Return what is tried, without the options that the command line fixes."""
    situation, base = prospect.fixed.situation, prospect.fixed.base
    if situation is None or not situation.pretrained:
        made = portfolio.from_scratch(base, epochs=schedule.epochs)
    else:
        networks = networks_for(situation, base)
        base = dataclasses.replace(base, image_size=schedule.image_size, epochs=schedule.epochs)
        long = schedule.expected >= LONG_FROM
        made = portfolio.of_photos(base, prospect.fixed.probe, networks=networks, long=long)
    fixed = prospect.fixed.options
    first = [_without(values, fixed) for values in made.first]
    whole = Portfolio(_without(made.space, fixed), _distinct(first))
    return portfolio.without_shapes(whole, prospect.above) if prospect.above else whole


def shapes_to_try(prospect: Prospect, schedule: Schedule) -> list[Values]:
    """Return the networks that may be above a bound, with the sizes of images where these count."""
    base = prospect.fixed.base
    if base.max_params is None and base.max_latency is None:
        return []
    shapes = portfolio.shapes_of(portfolio_of(prospect, schedule))
    if base.max_latency is None:  # the number of parameters does not depend on the images
        names = dict.fromkeys(shape["model"] for shape in shapes if "model" in shape)
        shapes = [{"model": name} for name in names]
    return [shape for shape in shapes if shape]


def _without(values: Mapping[str, object], fixed: set[str]) -> Json:
    """Take fixed options out of a search space or of a configuration, nested ones too."""
    kept: Json = {}
    for key, value in values.items():
        if key in fixed:
            continue
        if isinstance(value, Mapping) and "_value" in value:
            inner = value["_value"]
            value = {**value, "_value": [_stripped(each, fixed) for each in inner]}
        else:
            value = _stripped(value, fixed)
        kept[key] = value
    return kept


def _stripped(value: object, fixed: set[str]) -> object:
    return _without(value, fixed) if isinstance(value, Mapping) else value


def _distinct(configurations: Sequence[Values]) -> list[Values]:
    found: dict[str, Values] = {}
    for each in configurations:
        found.setdefault(json.dumps(each, sort_keys=True), each)
    return list(found.values())


def new_place(data_dir: Path) -> Path:
    """Return a folder for a search that nothing is in yet."""
    name = re.sub(r"[^\w.-]+", "_", data_dir.resolve().name) or "search"
    number = 1
    while Path(FOLDER, f"{name}-{number}").exists():
        number += 1
    return Path(FOLDER, f"{name}-{number}")


def trial_command(request: Request, place: Path) -> str:
    """Return the command of each trial: the options that are fixed, and where results go."""
    out_dir = str(place.resolve() / "outputs")
    words = ["--resume", "auto", *options_of(request), "--out_dir", out_dir]
    return f"python3 -m ballot.preload train.py {shlex.join(words)}"


def write_files(
    engine: Engine, request: Request, prospect: Prospect, schedule: Schedule, place: Path
) -> Path:
    """Write `search_space.json` and `config.yml` into `place`, and return the latter."""
    made = portfolio_of(prospect, schedule)
    place.mkdir(parents=True)
    write_json(place / "search_space.json", made.space)
    sketch = Sketch(
        name=place.name,
        space_file="search_space.json",
        command=trial_command(request, place),
        code=ROOT,
        max_seconds=schedule.total,
        max_trials=request.max_trials,
        concurrency=prospect.concurrency,
        maximize=prospect.mode == "max",
        first=made.first,
        stops_early=schedule.expected >= ASHA_FROM,
    )
    engine.write_config(place / "config.yml", sketch)
    return place / "config.yml"


def options_of(request: Request) -> list[str]:
    """Return the options of train.py that all trials have."""
    options = list(request.options)
    for place, word in enumerate(options):  # trials run in another folder
        name, equals, value = word.partition("=")
        if name.removeprefix("--") in LISTS and (equals or place + 1 < len(options)):
            path = Path(value if equals else options[place + 1]).expanduser()
            options[place : place + 2 - len(equals)] = [name, str(resolved(path, "name a file"))]
    data_dir = resolved(request.data_dir, "name a folder of images")
    return ["--data_dir", str(data_dir), *options]


def concurrency_for(gpus: int) -> int:
    """Return how many trials run at once: one for each GPU, or a few that share the cores."""
    cores = count_cores()
    return gpus or max(1, min(8, cores if cores <= 2 else cores // 2))


def lines_of(prospect: Prospect, schedule: Schedule, place: Path) -> list[str]:
    """Say what was decided, in a few lines."""
    refit = f", then {clock(schedule.refit)} for the best on all rows" if schedule.refit else ""
    pixels = f" at {schedule.image_size} px" if schedule.image_size else ""
    start = "small pictures in grey: a small network, from scratch"
    if prospect.fixed.base.recipe == "none":
        start = "no recipe: plain defaults where nothing is given"
    return [
        prospect.fixed.sentence or start,
        f"plan: {span(schedule.total)}: about {plural(schedule.expected, 'trial')} of "
        f"{plural(schedule.epochs, 'epoch')}{pixels}, {prospect.concurrency} at once{refit}; "
        f"in {place / 'config.yml'} and search_space.json",
    ]
