"""Write an HTML report about a search, in one file."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "nni", "psutil")

from ballot.config.command_line import Parser
from ballot.errors import UserError
from ballot.report.page import Pictures, Report, write_pngs, write_report
from ballot.report.pictures import as_address, sheet_address, warmed
from ballot.report.serve import PORT, open_server
from ballot.report.statistics import differences
from ballot.report.trials import Trial, find_trials
from ballot.scripts import script_main
from ballot.wording import plural

if TYPE_CHECKING:
    from torch import Tensor

    from ballot.data.augment import Recipe

SIDE = 160  # pixels of a picture at most


@script_main
def main(argv: list[str] | None = None) -> int:
    """Write the report, or print what differs between two runs."""
    args = build_parser().parse_args(argv)
    if args.diff:
        print("\n".join(diff_lines(*map(Path, args.diff))))
        return 0
    report = write(args, pictures=not args.no_pictures)
    size = Path(args.out).stat().st_size / 1e6
    print(f"report    {args.out}  ({plural(len(report.found.trials), 'trial')}, {size:.1f} MB)")
    for note in report.found.notes:
        print(f"note      {note}")
    if args.png:
        files = write_pngs(report, Path(args.png))
        print(f"figures   {len(files)} in {args.png}")
    if args.serve is not None:
        serve(args, live=bool(report.context["live"]))
    return 0


def write(args: Namespace, *, pictures: bool) -> Report:
    """Write the page as the command line says."""
    return write_report(
        Path(args.outputs),
        Path(args.out),
        search=args.search,
        vote_dir=None if args.vote_dir is None else Path(args.vote_dir),
        pictures=find_pictures if pictures else None,
    )


def serve(args: Namespace, *, live: bool) -> None:
    """Show the page to the browsers of this machine until Ctrl-C."""

    def renew() -> bool:
        running = bool(write(args, pictures=False).context["live"])
        if not running and not args.no_pictures:
            write(args, pictures=True)  # the last one, with all that belongs to it
        return running

    with open_server(args.serve or None, Path(args.out), renew, live) as server:
        print(f"serving   {server.address}  to this machine alone; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def build_parser() -> Parser:
    """Make the command line."""
    parser = Parser(prog="report.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("outputs", nargs="?", default="outputs", help="folder of the runs (default: outputs)")
    add("--out", default="report.html", metavar="FILE", help="output file (default: report.html)")
    add(
        "--search",
        metavar="ID",
        help="only the runs of this search (default: all runs on the same data)",
    )
    add("--vote_dir", metavar="DIR", help="ensemble folder (default: ensemble, next to outputs)")
    add("--no_pictures", action="store_true", help="leave out sample images")
    add("--png", metavar="DIR", help="also write each figure as a PNG file")
    add(
        "--serve",
        nargs="?",
        type=int,
        const=0,
        metavar="PORT",
        help=f"also serve the report on 127.0.0.1 until Ctrl-C (default port: {PORT} or the next)",
    )
    add(
        "--diff",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="print the differences between two run folders and stop",
    )
    return parser


def diff_lines(one: Path, two: Path) -> list[str]:
    """Say what differs between two run folders, in settings and in results."""
    trials = [read_run(path) for path in (one, two)]
    settings, results = differences(*trials)
    names = [t.name for t in trials]
    lines = [f"{names[0]} and {names[1]}"]
    if not settings:
        lines += ["", "no setting differs"]
    else:
        lines += ["", *_columns([("setting", *names), *settings])]
    if not results:
        return [*lines, "", "no result differs"]
    return [*lines, "", *_columns([("result", *names, "change"), *results])]


def read_run(path: Path) -> Trial:
    """Read one run folder as its outputs folder's report would."""
    if not (path / "config.json").exists():
        raise UserError(f"{path}: is no run folder; name two, as in outputs/<run>")
    path = path.resolve()
    return next(t for t in find_trials(path.parent, only=path.name).trials)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    rows = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
    wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(f"{c:{w}}" for c, w in zip(row, wide)).rstrip() for row in rows]


def find_pictures(trial: Trial, answers: Mapping[str, str]) -> Pictures:
    """Load the data of a run as its trial did, and return pictures of it; torch is loaded here.

    `answers` has the classes that were answered by the ids of the rows; where it is empty, nobody
    asks why, and there is no map.
    """
    try:
        found, config = _examine(trial)
    except (UserError, OSError) as error:
        return Pictures(why_not=f"the data cannot be loaded here ({error}).")
    shown = Pictures(sheet=sheet_address(found, config), why_not="These rows are not in the data.")
    import numpy as np

    place = {name: row for row, name in enumerate(found.table.ids)}
    images = {}
    for name in (name for name in answers if name in place):
        batch = next(iter(found.stores["val"].stream([np.array([place[name]])])))
        images[name] = batch[0].clone()
        shown.rows[name] = as_address(images[name].permute(1, 2, 0).numpy(), SIDE)
    asked = {name: image for name, image in images.items() if answers[name]}
    if asked:
        try:
            shown.maps = find_maps(trial, asked, answers, found.recipes["val"])
        except UserError as error:
            shown.why_no_maps = str(error)
    return shown


def find_maps(
    trial: Trial, images: Mapping[str, Tensor], answers: Mapping[str, str], recipe: Recipe
) -> dict[str, str]:
    """Return where a run's network looks for the answers to images uint8 [3, S, S], as addresses.

    Without its weights, or a network that has such a map, it is a `UserError`.
    """
    import torch

    from ballot.prediction.cam import class_activation_maps
    from ballot.prediction.checkpoints import answering_checkpoints, fill, read_checkpoint
    from ballot.prediction.predictor import as_seen
    from model import create_model

    paths, _ = answering_checkpoints(trial.folder)
    if not paths:
        raise UserError(f"the weights of {trial.label} are not kept")
    saved = read_checkpoint(paths[0])
    name, args = saved.config.model, saved.config.model_args
    model, _ = create_model(
        name, len(saved.classes), pretrained="no", args=args, image_size=saved.image_size
    )
    seen = as_seen(saved, recipe, fill(model, saved).eval(), torch.stack([*images.values()]))
    classes = torch.tensor([saved.classes.index(answers[row]) for row in images])
    maps = class_activation_maps(model, seen, classes)
    if maps is None:
        raise UserError(f"{name.removeprefix('timm:')} has no feature map of more than one place")
    large = torch.nn.functional.interpolate(
        maps[:, None], next(iter(images.values())).shape[1:], mode="bilinear"
    )
    pictures = zip(images.items(), large.numpy()[:, 0])
    return {
        row: as_address(warmed(image.permute(1, 2, 0).numpy(), heat), SIDE)
        for (row, image), heat in pictures
    }


def _examine(trial: Trial) -> tuple[Any, object]:
    """Return the run's data, examined, and its configuration."""
    import dataclasses

    from ballot.config.files import read_config_file
    from ballot.config.layers import merge
    from dataset import AUGMENTATIONS, examine, find_table

    config, _ = merge([read_config_file(trial.folder / "config.json")])
    # A report never downloads, and never runs the plugins of a run that somebody sent.
    config = dataclasses.replace(
        config,
        download=False,
        folds=1,
        fold=None,
        exclude=None,
        image_size=trial.result.get("image_size"),
    )
    if config.plugins and config.augmentation not in AUGMENTATIONS.names():
        raise UserError(f"augmentation: {config.augmentation} is a plugin's; the sheet is left out")
    return examine(config, find_table(config), AUGMENTATIONS), config


if __name__ == "__main__":
    sys.exit(main())
