"""Predict new images: `python predict.py outputs/<run> photos/ --out new.csv`."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":
    from ballot.installed import require

    require("numpy", "torch", "torchvision")

import numpy as np
import torch

from ballot.config.command_line import Parser
from ballot.cpus import cpu_count
from ballot.data.augment import Recipe
from ballot.data.batches import Data
from ballot.data.images import decode_file
from ballot.data.prepare import make_recipes
from ballot.errors import UserError
from ballot.prediction import soup, tta
from ballot.prediction.checkpoints import Checkpoint, find_electorate
from ballot.prediction.export import check_export, check_exportable, export
from ballot.prediction.inputs import Images, find_images
from ballot.prediction.predictor import Answers, Predictor, decoded, load_predictor, predict
from ballot.prediction.teaching import measure, teach
from ballot.registry import load_plugins
from ballot.runs.files import write_json
from ballot.scripts import script_main
from ballot.training import process
from ballot.training.heads import make_heads
from ballot.values import Json
from ballot.vote.ballots import write_ballot
from ballot.vote.combine import METRICS
from ballot.wording import few, plural
from dataset import AUGMENTATIONS, find_table, load_data
from model import adopt_classes, create_model

CHECKED = 64  # of the images given, those on which an exported file is compared


def build_parser() -> Parser:
    """Declare the command line."""
    parser = Parser(prog="predict.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    model = "run folder, best.pt, or ensemble folder (with ensemble.json); several runs for --soup"
    add("model", metavar="RUN_OR_ENSEMBLE", help=model)
    inputs = "images, folders of images, or CSVs with a path (and optionally an id) per row"
    add("input", nargs="*", metavar="INPUT", help=inputs)
    out = "output CSV with id and class probabilities; with --export the model file"
    add("--out", metavar="FILE", help=out)
    top = "print the K most likely classes of each image (default without --out: 1)"
    add("--top", type=count, metavar="K", help=top)
    views = (
        "test-time augmentation: off, or names such as hflip,crops (default: as in training); "
        f"available: {', '.join(tta.VIEWS)}"
    )
    add("--tta", metavar="NAMES", help=views)
    add("--batch_size", type=count, default=64, metavar="N", help="batch size (default: 64)")
    workers = "threads that decode images (default: number of CPUs)"
    add("--workers", type=count, default=cpu_count(), metavar="N", help=workers)
    add("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (default: auto)")
    amp = "mixed precision, see train.py --help (default: auto)"
    add("--amp", default="auto", choices=("auto", "off", "bf16", "fp16"), help=amp)
    add(
        "--root",
        metavar="DIR",
        type=Path,
        help="base folder of the paths in a CSV (default: its folder)",
    )
    allow_missing = "skip ensemble members whose checkpoints are missing"
    add("--allow_missing", action="store_true", help=allow_missing)
    plugins = "Python files that define your models; files named in a checkpoint are never run"
    add("--plugins", nargs="+", default=[], metavar="FILE", help=plugins)
    add_soup_options(parser)
    add_teaching_options(parser)
    return parser


def add_soup_options(parser: Parser) -> None:
    """Add what makes one file of a model or of several runs."""
    add = parser.add_argument
    export = "export the model to one file and compare its probabilities with PyTorch"
    add("--export", metavar="onnx|torch", help=export)
    soup = "average the weights of runs with the same initialisation into --out DIR, if that helps"
    add("--soup", action="store_true", help=soup)
    add(
        "--metric",
        default="acc",
        choices=METRICS,
        help="with --soup: metric to improve (default: acc)",
    )
    add("--data_dir", metavar="DIR", help="with --soup: data folder, if it has moved")
    seed = "with --soup: seed of the cross-fitting splits (default: 0)"
    add("--seed", type=int, default=0, metavar="N", help=seed)


def add_teaching_options(parser: Parser) -> None:
    """Add what another network learns from, and what the networks cost."""
    add = parser.add_argument
    soft = (
        "write soft labels for train.py to --out: of the data set's test images and of INPUT; "
        "all: of its training images too"
    )
    add("--soft_labels", choices=("all", "unlabelled"), help=soft)
    least = "with --soft_labels: leave out unlabelled images that no class has this probability of"
    add("--min_probability", type=float, default=0.0, metavar="P", help=least)
    measure = "print parameters and images/s of the networks, of several runs too; --out FILE.json"
    add("--measure", action="store_true", help=measure)


def count(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


@script_main
def main(argv: list[str] | None = None) -> int:
    """Predict, or export; the status is 1 where an image could not be read."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    asked = build_parser().parse_args(argv)
    views = tta.parse(asked.tta)
    check(asked)
    load_plugins(asked.plugins, adopt_classes)
    if asked.soup:
        return write_soups(asked)
    if asked.measure:
        return write_costs(asked)
    images = find_images(asked.input, asked.root) if asked.input else None
    predictor = load(asked, asked.model)
    if asked.soft_labels:
        return write_soft_labels(asked, predictor, images)
    if asked.export or images is None:
        return write_export(asked, predictor, images)
    device = process.pick_device(asked.device)
    answers = predict(
        predictor,
        images.paths,
        device=device,
        batch_size=asked.batch_size,
        workers=asked.workers,
        amp=process.pick_amp(asked.amp, device),
        views=views,
    )
    return conclude(asked, predictor, images, answers)


def check(asked: argparse.Namespace) -> None:
    """Refuse wishes that do not go together, before anything is loaded."""
    if asked.soup and (asked.export or asked.tta or asked.top):
        raise UserError("--soup: does not go with --export, --tta or --top; predict with the soup")
    if asked.soup and not asked.out:
        raise UserError("--soup: where to? give --out DIR")
    if asked.soft_labels and not asked.out:
        raise UserError("--soft_labels: where to? give --out FILE.csv")
    if not 0 <= asked.min_probability <= 1:
        raise UserError(f"--min_probability: {asked.min_probability:g}; it goes from 0 to 1")
    if asked.export:
        check_export(asked.export, asked.out)
        for name in ("tta", "top"):
            if getattr(asked, name):
                raise UserError(f"--{name}: does not go with --export, which holds the model alone")
    elif not (asked.input or asked.soup or asked.soft_labels or asked.measure):
        raise UserError("predict.py: what is to be predicted? give images, a folder or a CSV")


def load(asked: argparse.Namespace, model: str) -> Predictor:
    """Load what answers, and say who is left out."""
    electorate, notes = find_electorate(Path(model), allow_missing=asked.allow_missing)
    for note in notes:
        say(f"note: {note}")
    device = torch.device("cpu") if asked.export else process.pick_device(asked.device)
    return load_predictor(electorate, build, show, device)


def build(saved: Checkpoint) -> torch.nn.Module:
    """Make the network of a checkpoint, without looking for other weights."""
    config = saved.config
    try:
        return create_model(
            config.model,
            len(saved.classes),
            pretrained="no",
            args=config.model_args,
            image_size=saved.image_size,
            heads=make_heads(config.heads, saved.attributes),
        )[0]
    except UserError as error:
        raise UserError(f"{saved.path}: {error}{plugins_of(saved)}") from None


def show(saved: Checkpoint) -> Recipe:
    """Return how the run of a checkpoint showed its test images."""
    settled = replace(saved.config, image_size=saved.image_size)
    try:
        return make_recipes(settled, saved.image_size, AUGMENTATIONS, crop=saved.crop)[0]["test"]
    except UserError as error:
        raise UserError(f"{saved.path}: {error}{plugins_of(saved)}") from None


def plugins_of(saved: Checkpoint) -> str:
    """Say which files of the user's own the run had: a checkpoint does not make them run."""
    names = " ".join(saved.config.plugins)
    return f"; the run had --plugins {names}, give it here too" if names else ""


def conclude(
    asked: argparse.Namespace, predictor: Predictor, images: Images, answers: Answers
) -> int:
    """Write and print the answers, name what could not be read, and say how fast it was."""
    for row, reason in answers.unreadable.items():
        say(f"skipped: {images.paths[row]} {reason}")
    if not answers.rows:
        raise UserError(f"{asked.input[0]}: none of {len(images)} images can be read")
    ids = [images.ids[row] for row in answers.rows]
    columns = predictor.electorate.columns
    if asked.top or not asked.out:
        print_top(ids, columns, answers.probs, asked.top or 1)
    if asked.out:
        write_ballot(Path(asked.out), ids, columns, answers.probs)
        say(f"written: {asked.out}")
    networks = len(predictor.flat)
    say(
        f"{plural(len(ids), 'image')} by {plural(networks, 'network')} in "
        f"{answers.seconds:.1f} s: {len(ids) / answers.seconds:,.1f} images/s"
    )
    if answers.unreadable:
        names = [images.ids[row] for row in answers.unreadable]
        say(f"{len(names)} of {len(images)} images could not be read: {few(names)}")
    return 1 if answers.unreadable else 0


def print_top(ids: list[str], columns: list[str], probs: np.ndarray, top: int) -> None:
    """Print a line an image: its id, then classes and probabilities, parted by tabs."""
    order = np.argsort(-probs, axis=1, kind="stable")[:, :top]
    for name, row, best in zip(ids, probs, order):
        print("\t".join([name, *(f"{columns[k]}\t{row[k]:.4f}" for k in best)]))


def write_export(asked: argparse.Namespace, predictor: Predictor, images: Images | None) -> int:
    """Write the model as one file and say how near it comes."""
    out, sample = Path(asked.out), None
    shape = check_exportable(predictor)
    if images is not None:
        paths = images.paths[:CHECKED]

        def read(row: int) -> torch.Tensor:
            return decode_file(paths[row])

        for rows, found, _ in decoded(read, len(paths), [shape], CHECKED, asked.workers):
            sample = found[shape].numpy() if len(rows) > 1 else None
    facts: Json = export(predictor, asked.export, out, str(asked.model), sample)
    checked = facts["checked"]
    say(
        f"written: {out}, {out.with_suffix('.json')}; on {checked['images']} images its "
        f"probabilities differ by {checked['largest_difference']:.1g} at most"
    )
    return 0


def write_soft_labels(
    asked: argparse.Namespace, predictor: Predictor, images: Images | None
) -> int:
    """Write what a network can learn of the vote, and how many images that is."""
    device = process.pick_device(asked.device)
    saved = predictor.flat[0].checkpoint
    table = find_table(replace(saved.config, data_dir=asked.data_dir or saved.config.data_dir))
    lesson = teach(
        predictor,
        table,
        images,
        labelled=asked.soft_labels == "all",
        least=asked.min_probability,
        device=device,
        amp=process.pick_amp(asked.amp, device),
        batch_size=asked.batch_size,
        workers=asked.workers,
    )
    out = Path(asked.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_ballot(out, lesson.ids, predictor.electorate.columns, lesson.probs)
    write_json(out.with_suffix(".json"), {"asked": lesson.asked, "kept": len(lesson.ids)})
    say(f"written: {out}: soft labels of {len(lesson.ids):,} of {lesson.asked:,} images")
    return 0


def write_costs(asked: argparse.Namespace) -> int:
    """Print what networks cost, those of one or of several runs and votes."""
    device = process.pick_device(asked.device)
    models = [asked.model, *asked.input]
    predictors = [load(asked, model) for model in models]
    costs = measure(predictors, device, process.pick_amp(asked.amp, device))
    for model, cost in zip(models, costs):
        print(
            f"{model}: {plural(cost.networks, 'network')}, {plural(cost.parameters, 'parameter')}, "
            f"{cost.images_per_second:,.1f} images/s on {device}, decoding not counted"
        )
    if asked.out:
        write_json(Path(asked.out), {model: asdict(cost) for model, cost in zip(models, costs)})
    return 0


def write_soups(asked: argparse.Namespace) -> int:
    """Average what can be averaged, and say for each group of runs what it gained."""
    out, device = Path(asked.out), process.pick_device(asked.device)
    runs = [path for path in map(Path, [asked.model, *asked.input]) if path.suffix != ".csv"]
    candidates, notes = soup.find_candidates(dict.fromkeys(runs))  # outputs/* has ballots too
    for note in notes:
        print(f"soup: left out: {note}")
    soup.clear(out)
    groups = soup.group_candidates(candidates, show)
    cooked: dict[str, int] = {}
    for group in (g for g in groups if len(g) > 1):
        model = re.sub(r"[^A-Za-z0-9_.-]", "-", group[0].saved.config.model)
        cooked[model] = cooked.get(model, 0) + 1
        name = f"soup-{model}" + (f"-{cooked[model]}" if cooked[model] > 1 else "")
        made = soup.make_soup(
            group,
            name,
            out,
            build=build,
            load=lambda saved: data_of(saved, asked.data_dir),
            metric=asked.metric,
            seed=asked.seed,
            device=device,
            amp=process.pick_amp(asked.amp, device),
            batch_size=asked.batch_size,
        )
        print(soup.worded(made))
    if not cooked:
        print(
            f"soup: none; no two of {len(candidates)} runs have the same model, images, "
            "validation rows and initial weights"
        )
    return 0


def data_of(saved: Checkpoint, data_dir: str | None) -> Data:
    """Load the rows that a checkpoint's run had, as it showed them."""
    config = replace(
        saved.config,
        image_size=saved.image_size,
        mean=saved.mean,
        std=saved.std,
        data_dir=data_dir or saved.config.data_dir,
        soft_labels=None,  # which training alone needs
    )
    return load_data(config)


def say(text: str) -> None:
    """Print what is no answer: answers alone go to the standard output."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
