"""Combine the predictions of many runs: `python ensemble.py outputs/*.csv`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy")

from ballot.config.command_line import Parser
from ballot.engines.choose import AnyEngine, HasSearches, find_search, newest_search, outside_trials
from ballot.engines.interface import Search
from ballot.errors import UserError
from ballot.prediction import distillation, pseudo_labels, soup_process
from ballot.prediction.other_scripts import Scripts
from ballot.prediction.pseudo_labels import SURE
from ballot.runs.files import read_json
from ballot.runs.folder import is_validation, run_of
from ballot.scripts import script_main
from ballot.values import Json
from ballot.vote.combine import METHODS, METRICS
from ballot.vote.members import find_files
from ballot.vote.options import VoteOptions, check_options
from ballot.vote.outcome import VoteReport, unlink_from_search
from ballot.vote.run import run_vote
from ballot.vote.table import format_table
from ballot.wording import terminal_width


def build_parser() -> Parser:
    """Declare the command line: a flag for each field of `VoteOptions`."""
    parser = Parser(prog="ensemble.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    methods, metrics = "|".join(METHODS), "|".join(METRICS)
    files = "predictions of the runs: outputs/*.csv, or outputs/*/val.csv if there are no test rows"
    add("csv", nargs="*", metavar="CSV", help=files)
    out_dir = "output folder for soft.csv, submission.csv and ensemble.json (default: ensemble)"
    add("--out_dir", default="ensemble", metavar="DIR", help=out_dir)
    method = "how the probabilities are combined (default: mean)"
    add("--method", default="mean", metavar=methods, help=method)
    weights = "weights of the files, in the same order"
    add("--weights", nargs="+", type=number, metavar="X", help=weights)
    select = "select and weight members by their validation predictions; searches use auto"
    add("--select", metavar="auto|greedy|best:N|all", help=select)
    bag = "with --select greedy: bagging rounds over random halves of the members (default: 1, all)"
    add("--bag", type=int, default=1, metavar="N", help=bag)
    add("--stack", metavar="logistic", help="fit a stacking model to the validation predictions")
    calibrate = "apply temperature scaling to each member, fitted to its validation predictions"
    add("--calibrate", action="store_true", help=calibrate)
    add(
        "--truth",
        metavar="FILE",
        help="CSV with the id and true class of the test rows, to compute test scores",
    )
    group_folds = "first average the folds and seeds of one configuration into one member"
    add("--group_folds", action="store_true", help=group_folds)
    metric = "metric by which members are selected (default: acc)"
    add("--metric", default="acc", metavar=metrics, help=metric)
    seed = "seed of bagging and of the cross-fitting splits (default: 0)"
    add("--seed", type=int, default=0, metavar="N", help=seed)
    add_other_options(parser)
    return parser


def add_other_options(parser: Parser) -> None:
    """Add the options for averaging weights and for retraining the best."""
    add = parser.add_argument
    soup = (
        "also average the weights of runs with the same initialisation, if that improves the score"
    )
    add("--soup", action="store_true", help=soup)
    moved = "with --soup or --distill: data folder, if it has moved"
    add("--data_dir", metavar="DIR", help=moved)
    finalize = "retrain the N best configurations of a search on all folds and combine only these"
    add("--finalize", type=int, metavar="N", help=finalize)
    add(
        "--folds",
        type=int,
        default=5,
        metavar="K",
        help="with --finalize: number of folds (default: 5)",
    )
    add_last_options(parser)
    search = "with --finalize: search id (default: that of the CSVs, or the newest of this folder)"
    add("--search", metavar="ID", help=search)
    add(
        "--port",
        type=int,
        default=8080,
        help="with --finalize: first port to try for NNI (default: 8080)",
    )


def add_last_options(parser: Parser) -> None:
    """Add what is trained on the answers of the vote."""
    add = parser.add_argument
    distill = "train one network, MODEL, on the answers of the ensemble; options of train.py follow"
    add("--distill", metavar="MODEL", help=distill)
    pseudo = (
        "train the best members again on test images and --unlabelled images whose class has this "
        "probability (default: 0.9); they join the ensemble only if validation improves"
    )
    add("--pseudo_label", nargs="?", type=number, const=SURE, metavar="P", help=pseudo)
    unlabelled = "with --distill or --pseudo_label: folders of images without labels to train on"
    add("--unlabelled", nargs="+", default=[], metavar="DIR", help=unlabelled)


def number(text: str) -> float:
    """Read a weight; a file name among them gets a message of its own."""
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


def vote_of_finalists(every: AnyEngine, asked: Json, options: VoteOptions) -> int:
    """Train the best configurations on all folds, as far as that is not done, and let them vote."""
    from ballot.preflight.tryout import check_data_of
    from ballot.search import finalize  # what a search takes, a vote of files does not

    check_options(options)
    count, folds = asked["finalize"], asked["folds"]
    if count < 1 or folds < 2:
        raise UserError(f"--finalize: {count} configurations on {folds} folds; at least 1 on 2")
    if asked["soup"] or options.weights is not None:
        raise UserError("--finalize: does not go with --soup or --weights")
    files = find_files(asked["csv"])[0] if asked["csv"] else []
    search, among = choose_search(every, asked["search"], files)
    engine = every.of(search)
    with search.watched():
        job = finalize.find_job(search, count, folds, among)
        if job.runs and not job.plan.elsewhere:
            print("checking the data ...", flush=True)
            inherited = outside_trials(os.environ)
            check_data_of(job.results, job.plan, job.trials, inherited=inherited)
        standings, interrupted = finalize.finalize(engine, search, job, port=asked["port"])
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


def choose_search(
    engine: HasSearches, wanted: str | None, files: Sequence[Path]
) -> tuple[Search, set[str] | None]:
    """Return the search of an id, of the CSVs that are given, or the newest of this folder.

    Beside it the names of the runs among which to choose; None stands for all.
    """
    if not files:
        found = find_search(engine, wanted) if wanted else newest_search(engine, None)
        return found, None
    told = {file: read_json(run_of(file) / "result.json").get("experiment") for file in files}
    known = {search for search in told.values() if search and search == (wanted or search)}
    if len(known) != 1:
        what = f"are of {len(known)} searches" if known else "are of no search"
        raise UserError(f"--finalize: the files {what}; name one with --search")
    search = known.pop()
    return find_search(engine, search), {run_of(f).name for f, of in told.items() if of == search}


@script_main
def main(argv: list[str] | None = None) -> int:
    """Vote, and print who voted, with what weight, and what it gained."""
    asked = read_command_line(argv)
    options = VoteOptions(**{f.name: asked[f.name] for f in fields(VoteOptions)})
    unlink_from_search(Path(options.out_dir))
    if asked["finalize"] is not None:
        status = vote_of_finalists(AnyEngine(), asked, options)
    else:
        status = vote_of_files(asked, options)
    if asked["distill"] is not None and status == 0:
        print("\n".join(["", *distilled(asked, options)]))
    return status


def read_command_line(argv: list[str] | None) -> Json:
    """Read the flags; with --distill those of train.py may be added."""
    parser = build_parser()
    known, rest = parser.parse_known_args(argv)
    if rest and known.distill is None:
        parser.refuse(rest[0])
    if known.unlabelled and known.distill is None and known.pseudo_label is None:
        raise UserError("--unlabelled: goes with --distill or --pseudo_label; add one of them")
    check_pseudo_label(known)
    lost = [path for path in known.unlabelled if not Path(path).expanduser().exists()]
    if lost:
        raise UserError(f"--unlabelled: {lost[0]} is not there")
    return {**vars(known), "options": rest}


def vote_of_files(asked: Json, options: VoteOptions) -> int:
    """Let the files vote, soups of their runs included where they are asked for."""
    if not asked["csv"]:
        raise UserError("command line: the following arguments are required: CSV")
    soups = make_soups(asked["csv"], options, asked["data_dir"]) if asked["soup"] else []
    files = [*asked["csv"], *soups]
    report = run_vote(files, options)
    print(format_table(report, terminal_width()))
    if asked["pseudo_label"] is not None:

        def vote(more: Sequence[Path], out_dir: Path) -> VoteReport:
            return run_vote([*files, *more], replace(options, out_dir=str(out_dir)))

        request = pseudo_labels.PseudoLabelRequest(
            asked["pseudo_label"], asked["unlabelled"], asked["data_dir"]
        )
        scripts = Scripts("--pseudo_label", outside_trials(os.environ))
        lines, better = pseudo_labels.last_round(report, vote, request, scripts)
        print("\n".join(["", *lines]))
        if better is not None:
            print("\n" + format_table(better, terminal_width()))
    return 0


def check_pseudo_label(known: argparse.Namespace) -> None:
    """Refuse wishes that do not go with pseudo-labels, before anything is read."""
    if known.pseudo_label is None:
        return
    if not 0 < known.pseudo_label <= 1:
        raise UserError(f"--pseudo_label: {known.pseudo_label:g}; a probability from 0 to 1")
    for flag in ("finalize", "weights", "group_folds"):
        if getattr(known, flag):
            raise UserError(f"--pseudo_label: does not go with --{flag}")


def distilled(asked: Json, options: VoteOptions) -> list[str]:
    """Train one network on the answers of the vote; return how the two compare."""
    request = distillation.DistilRequest(
        asked["distill"], asked["unlabelled"], asked["options"], asked["data_dir"]
    )
    scripts = Scripts("--distill", outside_trials(os.environ))
    return distillation.distil(Path(options.out_dir), request, scripts)


if __name__ == "__main__":
    sys.exit(main())
