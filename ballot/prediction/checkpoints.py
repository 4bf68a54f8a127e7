"""What a `best.pt` says of itself, and which of them a run folder or a written vote stands for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ballot.config.layers import merge
from ballot.config.schema import Config
from ballot.data.attributes import Attribute
from ballot.errors import UserError, suggest
from ballot.names import check_names
from ballot.prediction import tta
from ballot.runs.folder import read_result, run_of
from ballot.training.tensor_files import load_tensors
from ballot.training.weights import check_tensors
from ballot.values import Json, Layer
from ballot.vote.combine import METHODS, Recipe, Stack
from ballot.wording import few, natural

BARE = re.compile(r"^(module\.|_orig_mod\.)+")  # what several processes or compilation put in front


@dataclass(frozen=True)
class Checkpoint:
    """One network's weights, and how its run showed it images."""

    path: Path
    config: Config
    classes: list[str]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: dict[str, torch.Tensor]
    crop: int = 0  # what the data set's layout shows of an image
    start: tuple[float, ...] = ()  # numbers that tell initial weights apart; see `sample_of`
    tta: tuple[str, ...] = ()  # views whose mean the run's ballot holds
    attributes: tuple[Attribute, ...] = ()  # of which the classes are made, where there are any


@dataclass(frozen=True)
class Voter:
    """One member: runs whose mean it is, and of each run the checkpoints (one a fold)."""

    name: str
    runs: list[list[Path]]


@dataclass(frozen=True)
class Electorate:
    """Who answers together, and how; `columns` is the order of the answer's classes."""

    voters: list[Voter]
    recipe: Recipe
    classes: list[str]
    columns: list[str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `best.pt`; nothing in it is executed, and a foreign file is a `UserError`."""
    saved = load_tensors(path)
    if not isinstance(saved, dict) or not {"model", "about"} <= set(saved):
        raise UserError(f"{path}: is no best.pt of train.py; it has no description of its model")
    model = saved["model"]
    if not isinstance(model, dict) or not all(isinstance(v, torch.Tensor) for v in model.values()):
        raise UserError(f"{path}: its weights are damaged; train it again")
    check_tensors(path, model)
    try:
        about = json.loads(saved["about"])
        known = {key: about[key] for key in ("config", "classes", "image_size", "mean", "std")}
        settings = merge([Layer(str(path), known["config"])])[0]
        classes = [str(name) for name in known["classes"]]
        mean, std = (tuple(float(v) for v in known[key]) for key in ("mean", "std"))
        size, start = int(known["image_size"]), tuple(map(float, about.get("start") or ()))
        crop = int(about.get("crop") or 0)
        views = tuple(tta.parse(",".join(about.get("tta") or ())) or ())
        attributes = tuple(_attribute(said, len(classes)) for said in about.get("attributes") or ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: the description of its model is damaged ({error!r}); train it again"
        ) from None
    colours = len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0
    if not colours or len(set(classes)) < 2 or size < 4:
        raise UserError(
            f"{path}: says {len(classes)} classes, images of {size} pixels, mean "
            f"{mean}, std {std}, which no model of train.py has"
        )
    check_names(path, classes)
    weights = {BARE.sub("", name): value for name, value in model.items()}
    return Checkpoint(
        *(path, settings, classes, size, mean, std, weights, crop, start, views, attributes)
    )


def _attribute(said: Json, num_classes: int) -> Attribute:
    """Return an attribute as its run wrote it; a `ValueError` where it is none of these classes."""
    of_class = tuple(int(number) for number in said["of_class"])
    classes = tuple(str(name) for name in said["classes"])
    if len(of_class) != num_classes or set(of_class) != set(range(len(classes))):
        raise ValueError(f"attribute {said['name']!r}")
    return Attribute(str(said["name"]), classes, of_class)


def fill(model: torch.nn.Module, checkpoint: Checkpoint) -> torch.nn.Module:
    """Load the weights into a network built for them; any difference is a `UserError`."""
    own = model.state_dict()
    odd = [n for n in own if n not in checkpoint.weights]
    odd += [n for n, v in checkpoint.weights.items() if n not in own or own[n].shape != v.shape]
    if odd:
        raise UserError(
            f"{checkpoint.path}: its weights are not those of model {checkpoint.config.model!r} "
            f"({len(odd)} differ, as {odd[0]}); it was made by another version of the model"
        )
    for name, values in checkpoint.weights.items():
        if values.is_floating_point() and values.isnan().any():
            raise UserError(
                f"{checkpoint.path}: weights of {name} are not finite numbers; "
                "take another checkpoint, or train it again"
            )
    model.load_state_dict(checkpoint.weights)
    return model


def find_electorate(where: Path, *, allow_missing: bool = False) -> tuple[Electorate, list[str]]:
    """Find what `where` stands for: a checkpoint, a run folder or a written vote.

    Returns it with notes on what is left out. Members without their checkpoints are a `UserError`
    that names them; with `allow_missing` the others' weights are scaled to sum to 1.
    """
    record = where / "ensemble.json" if where.is_dir() else where
    if record.name == "ensemble.json" and record.is_file():
        return read_vote(record, allow_missing)
    if not where.exists():
        raise UserError(
            f"{where}: is not there; give a run folder (outputs/<run>), a best.pt, or "
            "the folder of a vote"
        )
    if where.suffix == ".csv":
        raise UserError(f"{where}: is a table; give the run's folder, {where.with_suffix('')}")
    paths, missing = ([where], "") if where.is_file() else answering_checkpoints(where)
    if missing:
        raise UserError(f"{where}: {missing}")
    classes = read_checkpoint(paths[0]).classes
    names = sorted(classes, key=natural)
    voter = Voter(where.stem if where.is_file() else where.name, [paths])
    return Electorate([voter], Recipe("mean", [1.0]), names, classes), []


def answering_checkpoints(run: Path) -> tuple[list[Path], str]:
    """Return a run's checkpoints, one for each fold that it answered with, or what is missing."""
    if (run / "best.pt").is_file():
        return [run / "best.pt"], ""
    folds = sorted(run.glob("fold*/best.pt"), key=lambda path: natural(path.parent.name))
    best = read_result(run).get("best_epoch")
    wanted = len(best) if isinstance(best, list) else 1
    if len(folds) < wanted or not folds:
        what = f"{len(folds)} of {wanted} folds have a best.pt" if folds else "holds no best.pt"
        return folds, f"{what}; collect the checkpoints or train it again"
    return folds, ""


def read_vote(record: Path, allow_missing: bool) -> tuple[Electorate, list[str]]:
    """Read an `ensemble.json`: members that have a say, their weights and their checkpoints."""
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        classes = [str(name) for name in said["classes"]]
        columns = [str(name) for name in said["columns"]]
        recipe = _recipe(said)
        members = [(str(m["name"]), [str(f) for f in m["files"]]) for m in said["members"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record}: is damaged ({error!r}); vote again") from None
    if recipe.method not in METHODS:
        raise UserError(f"{record}: method {recipe.method!r}{suggest(recipe.method, METHODS)}")
    if sorted(columns) != sorted(classes) or not members or len(members) != len(recipe.weights):
        raise UserError(f"{record}: is damaged; its members and classes do not fit; vote again")
    heard = [i for i in range(len(members)) if _has_say(recipe, i)]
    voters, gone = {}, []
    for number in heard:
        name, files = members[number]
        runs = [answering_checkpoints(run_of(record.parent / file)) for file in files]
        if any(missing for _, missing in runs):
            gone.append(name)
        else:
            voters[number] = Voter(name, [paths for paths, _ in runs])
    if gone and (not allow_missing or not voters or recipe.stack):
        raise UserError(_missing(record, gone, len(heard), voters, recipe))
    notes = [
        f"left out, without checkpoints: {few(gone)}; the weights of the other "
        f"{len(voters)} are scaled to sum to 1"
    ] * bool(gone)
    return Electorate(list(voters.values()), _part(recipe, list(voters)), classes, columns), notes


def _missing(
    record: Path, gone: Sequence[str], heard: int, voters: dict[int, Voter], recipe: Recipe
) -> str:
    """Say which members lack checkpoints, and what can be done."""
    text = f"{record}: {len(gone)} of {heard} members have no best.pt beside their CSV: {few(gone)}"
    if recipe.stack:
        return f"{text}; a stacked vote needs all of them"
    if not voters:
        return f"{text}; collect the run folders"
    return f"{text}; collect their run folders, or --allow_missing votes without them"


def _recipe(said: Json) -> Recipe:
    """Return the recipe that a record tells."""
    members, stack = said["members"], said.get("stack")
    warmth = [m.get("temperature") for m in members]
    temperatures = None if None in warmth else [float(t) for t in warmth]
    if stack is not None:
        coef, intercept = (np.array(stack[k], dtype=np.float64) for k in ("coef", "intercept"))
        stack = Stack(coef, intercept, [int(k) for k in stack["seen"]])
        if not np.isfinite(coef).all() or not np.isfinite(intercept).all():
            raise ValueError("a coefficient is not finite")
    weights = [float(member["raw_weight"]) for member in members]
    if not all(0 <= weight < math.inf for weight in weights):
        raise ValueError("a weight is not a number from 0 on")
    if not all(0 < temperature < math.inf for temperature in temperatures or ()):
        raise ValueError("a temperature is not a number above 0")
    return Recipe(said["method"], weights, temperatures, stack)


def _has_say(recipe: Recipe, number: int) -> bool:
    """Tell whether a member's predictions can change the answer."""
    if recipe.stack is not None:
        return bool(np.any(recipe.stack.coef[number]))
    return recipe.weights[number] > 0


def _part(recipe: Recipe, places: list[int]) -> Recipe:
    """Return the recipe of the members at `places`; a vote divides by the weights' sum itself."""
    temperatures, stack = recipe.temperatures, recipe.stack
    if temperatures is not None:
        temperatures = [temperatures[i] for i in places]
    if stack is not None:
        stack = Stack(stack.coef[places], stack.intercept, stack.seen)
    return Recipe(recipe.method, [recipe.weights[i] for i in places], temperatures, stack)
