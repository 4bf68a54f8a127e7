"""Copy the results of a search from its remote machines, while it runs or afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "nni", "psutil")

from ballot.config.command_line import Parser
from ballot.engines.choose import AnyEngine, find_search, newest_search
from ballot.errors import UserError
from ballot.scripts import script_main
from ballot.search.status import table_of
from ballot.wording import plural


@script_main
def main(argv: list[str] | None = None) -> int:
    """Bring home what has ended, and say what is where."""
    args = build_parser().parse_args(argv)
    if args.checkpoints < 0:
        raise UserError(f"command line: checkpoints is {args.checkpoints}; it must be at least 0")
    engine = AnyEngine()
    config = Path(args.config).resolve() if args.config else None
    search = find_search(engine, args.id) if args.id else newest_search(engine, config)
    plan = search.plan()
    if not plan.elsewhere:
        print(f"search {search.id} ran on this machine; its results are in {plan.outputs}")
        return 0
    plan = search.reconnected(plan, quiet=True)
    over, trials = not search.is_running(), search.trials()
    lines, brought = [], 0
    if (fetch := search.machines(plan, checkpoints=args.checkpoints)) is not None:
        lines = fetch.finish(trials, over=over)
        brought = fetch.brought()
        fetch.close()
    rows = table_of(search, plan).update(trials, over=over)
    here = sum((plan.outputs / row["run"] / "result.json").exists() for row in rows)
    print(f"{plural(brought, 'run')} brought home; {here} of {len(rows)} are in {plan.outputs}")
    for line in lines:
        print(line)
    return 1 if lines else 0


def build_parser() -> Parser:
    """Make the command line."""
    parser = Parser(prog="collect.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "id",
        nargs="?",
        metavar="ID",
        help="search id, see search.py --list (default: the newest of this folder)",
    )
    add("--config", metavar="FILE", help="use the newest search of this configuration file")
    add(
        "--checkpoints",
        type=int,
        default=1,
        metavar="N",
        help="also copy the checkpoints of the N best trials (default: 1)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
