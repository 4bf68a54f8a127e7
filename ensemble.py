"""The vote: `python ensemble.py outputs/*.csv` turns the CSVs of many runs into one answer."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy")

from ballot.config.command_line import Parser
from ballot.errors import UserError, script_main
from ballot.prediction import soup_process
from ballot.runs.folder import is_validation, run_of
from ballot.values import Json
from ballot.vote.combine import METHODS, METRICS
from ballot.vote.members import find_files
from ballot.vote.selection import VoteOptions, check_options
from ballot.vote.table import format_table
from ballot.vote.tally import run_vote
from ballot.wording import terminal_width


def build_parser() -> Parser:
    """Declare the command line: a flag for each field of `VoteOptions`."""
    parser = Parser(prog="ensemble.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    methods, metrics = "|".join(METHODS), "|".join(METRICS)
    files = "predictions of runs: outputs/*.csv, without test rows outputs/*/val.csv"
    add("csv", nargs="*", metavar="CSV", help=files)
    out_dir = "folder of soft.csv, submission.csv and ensemble.json (default: ensemble)"
    add("--out_dir", default="ensemble", metavar="DIR", help=out_dir)
    method = "how probabilities are combined (default: mean)"
    add("--method", default="mean", metavar=methods, help=method)
    weights = "weight of each file, in their order"
    add("--weights", nargs="+", type=number, metavar="X", help=weights)
    select = "choose and weigh members by their validation predictions; auto is what a search does"
    add("--select", metavar="auto|greedy|best:N|all", help=select)
    bag = "greedy: rounds, each over a random half of the members (default: 1, over all)"
    add("--bag", type=int, default=1, metavar="N", help=bag)
    add("--stack", metavar="logistic", help="learn the combination on validation predictions")
    calibrate = "give each member a temperature, fitted on validation, before the vote"
    add("--calibrate", action="store_true", help=calibrate)
    add("--truth", metavar="FILE", help="CSV of id and true class of test rows, for scores")
    group_folds = "average folds and seeds of one configuration to one member first"
    add("--group_folds", action="store_true", help=group_folds)
    metric = "score by which members are judged and chosen (default: acc)"
    add("--metric", default="acc", metavar=metrics, help=metric)
    seed = "seed of bags and of the parts for choice and score (default: 0)"
    add("--seed", type=int, default=0, metavar="N", help=seed)
    add_other_options(parser)
    return parser


def add_other_options(parser: Parser) -> None:
    """Add what averages weights, and what trains the best again."""
    add = parser.add_argument
    soup = "also average the weights of runs of one start, and let the mean vote where it gains"
    add("--soup", action="store_true", help=soup)
    add("--data_dir", metavar="DIR", help="--soup: the runs' data, where they are not as they were")
    finalize = "train a search's N best configurations again on folds, and vote with these alone"
    add("--finalize", type=int, metavar="N", help=finalize)
    add("--folds", type=int, default=5, metavar="K", help="--finalize: folds (default: 5)")
    search = "--finalize: the search (default: that of the CSVs, or the newest of this folder)"
    add("--search", metavar="ID", help=search)
    add("--port", type=int, default=8080, help="--finalize: first port to try for NNI")


def number(text: str) -> float:
    """Read a weight; a file name that landed among them is told apart."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number (files stand before --weights)"
        ) from None


def make_soups(csvs: list[str], options: VoteOptions, data_dir: str | None) -> list[str]:
    """Average weights in a process of its own, because that needs torch; return the new CSVs."""
    check_options(options)
    if options.weights is not None:
        raise UserError("--soup: does not go with --weights, which count the files given")
    files = find_files(csvs)[0]
    runs = [run for run in map(run_of, files) if run.is_dir()]
    if not runs:
        raise UserError("--soup: there are no run folders beside the CSVs; collect them first")
    soups = soup_process.make_soups(
        runs,
        Path(options.out_dir, "soup"),
        metric=options.metric,
        seed=options.seed,
        data_dir=data_dir,
    )
    tested = not is_validation(files[0])
    return list(map(str, soup_process.ballots_of(soups, tested=tested)))


def vote_of_finalists(asked: Json, options: VoteOptions) -> int:
    """Train the best configurations on all folds, as far as that is not done, and let them vote."""
    from ballot.engines.choose import AnyEngine
    from ballot.search import finalize  # what a search takes, a vote of files does not

    check_options(options)
    count, folds = asked["finalize"], asked["folds"]
    if count < 1 or folds < 2:
        raise UserError(f"--finalize: {count} configurations on {folds} folds; at least 1 on 2")
    if asked["soup"] or options.weights is not None:
        raise UserError("--finalize: does not go with --soup or --weights")
    files = find_files(asked["csv"])[0] if asked["csv"] else []
    every = AnyEngine()
    search, among = finalize.choose_search(every, asked["search"], files)
    engine = every.of(search)
    with search.watched():
        standings, interrupted = finalize.finalize(
            engine, search, count, folds, among=among, port=asked["port"]
        )
    if interrupted:
        print("the same command goes on from here")
        return 130
    if not standings:
        raise UserError(
            f"--finalize: no fold of search {search.id} came to its end; "
            f"python search.py --status {search.id} says why"
        )
    print("\n".join(finalize.table(standings, folds)) + "\n")
    ballots = [file for standing in standings for file in standing.ballots]
    report = run_vote(ballots, replace(options, group_folds=True))
    print(format_table(report, terminal_width()))
    lost = count * folds - len(ballots)
    if lost:
        print(f"{lost} of {count * folds} folds are missing; the same command tries them again")
    return 1 if lost else 0


@script_main
def main(argv: list[str] | None = None) -> int:
    """Vote, and print who voted, with what weight, and what it gained."""
    asked = vars(build_parser().parse_args(argv))
    options = VoteOptions(**{f.name: asked[f.name] for f in fields(VoteOptions)})
    if asked["finalize"] is not None:
        return vote_of_finalists(asked, options)
    if not asked["csv"]:
        raise UserError("command line: the following arguments are required: CSV")
    soups = make_soups(asked["csv"], options, asked["data_dir"]) if asked["soup"] else []
    report = run_vote([*asked["csv"], *soups], options)
    print(format_table(report, terminal_width()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
