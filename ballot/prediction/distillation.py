"""One network in the place of a vote: it learns the vote's answers (Hinton et al., 2015).

Labelled images have their label mixed into the answer; test images and other unlabelled images
have the answer alone. The network is trained for longer than by its labels (Beyer et al., 2022).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ballot.config.schema import FIELDS, Config
from ballot.config.trial_command import flag
from ballot.errors import UserError
from ballot.prediction.other_scripts import Scripts, soft_labels
from ballot.runs.files import read_json, write_json
from ballot.runs.folder import read_config, read_result, run_of
from ballot.values import Json, Values

LONGER = 4  # times the epochs that the recipe of the network has
NOT_THE_DATA = ("recipe", "soft_labels", "fold", "all_rows", "strict")  # of the group "data"


@dataclass(frozen=True)
class DistilRequest:
    """What is asked for: the network, further images, and options of train.py."""

    model: str
    unlabelled: Sequence[str] = ()
    options: Sequence[str] = ()
    data_dir: str | None = None


@dataclass(frozen=True)
class Line:
    """One line of the comparison."""

    name: str
    networks: int
    parameters: int
    images_per_second: float
    scores: dict[str, float] = field(default_factory=dict)  # val_acc, test_acc


def distil(vote_dir: Path, request: DistilRequest, scripts: Scripts) -> list[str]:
    """Train one network on the answers of the written vote; return what people want to know.

    It is a run in `vote_dir`/distilled. Raises `UserError` where a step fails.
    """
    record = read_json(vote_dir / "ensemble.json")
    run = new_run(vote_dir / "distilled", request.model)
    soft = run.with_name(f"{run.name}-soft.csv")
    words = training_words(values_of_members(vote_dir, record), request, run)
    words = with_schedule(words, json.loads(scripts.ask("train.py", [*words, "--print_config"])))
    print(f"distil: the vote answers for what {request.model} learns from ...", flush=True)
    kept, _ = soft_labels(
        scripts, vote_dir, soft, images=request.unlabelled, which="all", data_dir=request.data_dir
    )
    words += ["--soft_labels", str(soft)]
    print(f"distil: python train.py {shlex.join(words)}", flush=True)
    scripts.show("train.py", words)
    costs = costs_of(scripts, [vote_dir, run], run / "costs.json")
    scores = [scores_of_vote(record), scores_of_run(run)]
    lines = [
        Line(name, **cost, scores=known)
        for name, cost, known in zip(("vote", f"distilled {run.name}"), costs, scores)
    ]
    write_json(run / "distilled.json", {"images": kept, "lines": [vars(line) for line in lines]})
    return [*table(lines), written(scripts, run)]


def new_run(folder: Path, model: str) -> Path:
    """Return a run's folder that is not there yet."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", model)
    number, run = 1, folder / name
    while run.exists():
        number += 1
        run = folder / f"{name}-{number}"
    return run


def values_of_members(vote_dir: Path, record: Json) -> Values:
    """Return the configuration of the first member that has one: they all have the same data."""
    for member in record.get("members") or []:
        for file in member["files"]:
            run = run_of(vote_dir / file)
            if member.get("weight") and (run / "config.json").is_file():
                return read_config(run)
    raise UserError(
        f"--distill: no member of {vote_dir} has its run folder; keep outputs/<run> beside the CSVs"
    )


def training_words(values: Values, request: DistilRequest, run: Path) -> list[str]:
    """Return train.py's options: the members' data and split, the network, what was requested."""
    plain = Config()
    keys = [k for k, f in FIELDS.items() if f.metadata["group"] == "data" and k not in NOT_THE_DATA]
    words = ["--model", request.model]
    for key in [*keys, "cache", "cache_limit", "plugins"]:
        default = getattr(plain, key)
        value = (
            request.data_dir if key == "data_dir" and request.data_dir else values.get(key, default)
        )
        value, default = (list(v) if isinstance(v, tuple) else v for v in (value, default))
        if value != default:
            words += flag(key, value)
    if int(values.get("folds") or 1) > 1:
        words += ["--fold", str(values.get("fold") or 0)]
    seed = values.get("split_seed")
    words += ["--split_seed", str(values.get("seed") if seed is None else seed)]
    return [*words, "--out_dir", str(run.parent), "--run_name", run.name, *request.options]


def with_schedule(words: list[str], config: Json) -> list[str]:
    """Train longer than the recipe, on answers that are not smoothed, unless told otherwise."""
    values, origin = config["values"], config["origin"]
    added = []
    if origin["epochs"] in ("default", "recipe"):
        added += ["--epochs", str(LONGER * values["epochs"])]
    if origin.get("criterion_args.label_smoothing") == "recipe":
        added += ["--criterion_args.label_smoothing", "0"]
    return [*words, *added]


def costs_of(scripts: Scripts, models: Sequence[Path], out: Path) -> list[Json]:
    """Return networks, parameters and images a second of each model, measured side by side."""
    names = list(map(str, models))
    scripts.ask("predict.py", [*names, "--measure", "--out", str(out)])
    facts = read_json(out)
    out.unlink()
    return [facts[name] for name in names]


def scores_of_vote(record: Json) -> dict[str, float]:
    """Return the accuracy of the answer of a vote, as far as it is known."""
    scores = record.get("scores") or {}
    val = scores.get("val") or {}
    if scores.get("answer") == "best_single":
        best = [m for m in record["members"] if m["name"] == scores.get("best_single")]
        val = best[0].get("val") or {} if best else {}
    stages = {"val_acc": val, "test_acc": scores.get("test") or {}}
    return {name: stage["acc"] for name, stage in stages.items() if "acc" in stage}


def scores_of_run(run: Path) -> dict[str, float]:
    """Return the accuracy of a run on validation and test rows, as far as it is known."""
    result = read_result(run)
    found = {"val_acc": (result.get("scores") or {}).get("val_acc")}
    found["test_acc"] = (result.get("test") or {}).get("acc")
    return {name: value for name, value in found.items() if value is not None}


def table(lines: Sequence[Line]) -> list[str]:
    """Lay out the comparison, a line for the vote and one for the network."""
    scores = [k for k in ("val_acc", "test_acc") if any(k in line.scores for line in lines)]
    heads = ["", "networks", "parameters", "images/s", *scores]
    rows = [heads]
    for line in lines:
        told = [f"{line.scores[k]:.4f}" if k in line.scores else "" for k in scores]
        numbers = [str(line.networks), f"{line.parameters:,}", f"{line.images_per_second:,.0f}"]
        rows.append([line.name, *numbers, *told])
    sizes = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    return [
        "  ".join([f"{row[0]:<{sizes[0]}}", *(f"{v:>{n}}" for v, n in zip(row[1:], sizes[1:]))])
        for row in rows
    ]


def written(scripts: Scripts, run: Path) -> str:
    """Export the network to ONNX, and say where it is; or why there is no such file."""
    out = run / "model.onnx"
    line = f"written: {run} (python predict.py {run} IMAGES)"
    try:
        scripts.ask("predict.py", [str(run), "--export", "onnx", "--out", str(out)])
    except UserError as error:
        return f"{line}; no ONNX file: {str(error).partition(': ')[2]}"
    return f"{line}, {out} and {out.with_suffix('.json').name}"
