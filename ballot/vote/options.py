"""What a vote is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ballot.errors import UserError, suggest
from ballot.vote import combine


@dataclass(frozen=True)
class VoteOptions:
    """What a vote is asked for; None means that nothing was.

    `select` is auto, greedy, best:N or all, `stack` is logistic.
    """

    out_dir: str = "ensemble"
    method: str = "mean"
    weights: Sequence[float] | None = None
    select: str | None = None
    bag: int = 1
    stack: str | None = None
    calibrate: bool = False
    truth: str | None = None
    group_folds: bool = False
    metric: str = "acc"
    seed: int = 0


def check_options(options: VoteOptions) -> None:
    """Refuse wishes that contradict one another, before any file is read."""
    for name, value, choices in (
        ("--method", options.method, combine.METHODS),
        ("--metric", options.metric, combine.METRICS),
        ("--stack", options.stack or "logistic", ("logistic",)),
    ):
        if value not in choices:
            raise UserError(f"{name}: unknown {value!r}{suggest(value, choices)}")
    select = options.select
    if select is not None and not re.fullmatch(r"auto|greedy|all|best:[1-9][0-9]*", select):
        raise UserError(f"--select: {select!r} is not understood; auto, greedy, best:N or all")
    if options.bag < 1:
        raise UserError(f"--bag: {options.bag} rounds; 1 or more")
    if options.bag > 1 and select != "greedy":
        raise UserError("--bag: rounds are of --select greedy; add it, or leave --bag out")
    chosen = [n for n in ("weights", "select", "stack") if getattr(options, n) is not None]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]}: does not go with --{chosen[1]}; both decide the weights")
    if options.stack and options.method != "mean":
        raise UserError("--stack: does not go with --method; it learns its own combination")
    if select == "greedy" and options.method == "geometric":
        raise UserError("--select: greedy averages; it goes with --method mean, rank or hard")
    if select == "auto" and options.method != "mean":
        raise UserError("--select: auto averages; it goes with --method mean alone")
    if options.weights is not None and options.group_folds:
        raise UserError("--weights: does not go with --group_folds, which joins files")


@dataclass(frozen=True)
class Refit:
    """A run on all rows, which no validation row can judge, and the name of the run it repeats."""

    file: Path
    of: str
