"""Collect: bring the results of a search home from its machines, while it runs or long after."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "nni", "psutil")

from ballot.config.command_line import Parser
from ballot.engines.nni import experiment, remote
from ballot.engines.nni.database import read_trials
from ballot.errors import UserError, guard
from ballot.runs.results import Results
from ballot.search import plan


@guard
def main(argv: list[str] | None = None) -> int:
    """Bring home what has ended, and say what is where."""
    args = build_parser().parse_args(argv)
    if args.checkpoints < 0:
        raise UserError(f"command line: checkpoints is {args.checkpoints}; it must be at least 0")
    wanted = Path(args.config).resolve() if args.config else None
    search = experiment.find_search(args.id) if args.id else experiment.newest_search(wanted)
    params, _ = search.profile()
    outputs = plan.outputs_of(
        params["trialCommand"], params["trialCodeDirectory"], elsewhere=plan.is_elsewhere(params)
    )
    if not plan.is_elsewhere(params):
        print(f"search {search.id} ran on this machine; its results are in {outputs}")
        return 0
    links, maximize = remote.links_again(search, params, quiet=True), plan.is_maximized(params)
    fleet = remote.Fleet(
        search,
        links,
        params["trialCommand"],
        outputs,
        maximize=maximize,
        checkpoints=args.checkpoints,
    )
    over, trials = search.manager() is None, read_trials(search.folder)
    lines = fleet.finish(trials, over=over)
    results = Results(search.id, outputs, maximize=maximize, words=search.last_words)
    results.reasons.update(search.note().get("reasons", {}))
    rows = results.update(trials, over=over)
    brought = len(set(fleet.collector.brought))
    here = sum((outputs / row["run"] / "result.json").exists() for row in rows)
    print(
        f"{brought} run{'s' * (brought != 1)} brought home; {here} of {len(rows)} are in {outputs}"
    )
    for line in lines:
        print(line)
    fleet.close()
    return 1 if lines else 0


def build_parser() -> Parser:
    """Make the command line."""
    parser = Parser(prog="collect.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "id",
        nargs="?",
        metavar="ID",
        help="as search.py --list shows it (default: this folder's newest)",
    )
    add("--config", metavar="FILE", help="the newest search of this configuration instead")
    add(
        "--checkpoints",
        type=int,
        default=1,
        metavar="N",
        help="bring the weights of the best N trials too (default: 1)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
