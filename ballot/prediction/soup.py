"""Greedy soups: one network whose weights are the mean of several runs' (Wortsman et al., 2022).

Only networks of one architecture that started from the same weights have a mean that answers
anything. Which ones go in is chosen on one half of the validation rows and scored on the other, and
the other way round, so that the gain that is told was chosen by nobody.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ballot.data.batches import Data, Subset
from ballot.errors import UserError
from ballot.prediction import tta
from ballot.prediction.checkpoints import Checkpoint, answering_checkpoints, fill, read_checkpoint
from ballot.prediction.predictor import Build, Show
from ballot.runs.files import write_json
from ballot.runs.folder import read_result
from ballot.training import loop, tensor_files
from ballot.training.blocks import arrange, ordered
from ballot.vote import combine
from ballot.vote.ballots import read_ballot, write_ballot
from ballot.vote.comparison import FEWEST_ROWS, Honest, SharedRows, compare
from ballot.vote.options import VoteOptions
from ballot.wording import few

SAME_START = 1e-4  # rounding of another processor; other seeds differ in the second digit
NORM_ROWS = 2048  # training rows from which batch norms learn their statistics anew

Load = Callable[[Checkpoint], Data]


@dataclass(frozen=True)
class Candidate:
    """A run that may go into a soup; its weights are read when they are needed."""

    name: str
    saved: Checkpoint  # without its weights
    ids: list[str]
    labels: list[str]
    probs: np.ndarray  # [N, C] of its validation rows, in the order of `saved.classes`


@dataclass(frozen=True)
class Soup:
    """What greedy averaging gave: the runs in it, and its honest score."""

    name: str
    candidates: int
    chosen: list[str]
    honest: Honest
    kept: bool
    files: list[Path]


def find_candidates(runs: Iterable[Path]) -> tuple[list[Candidate], list[str]]:
    """Read the runs that can be averaged at all; notes name the others."""
    found, notes = [], []
    for run in runs:
        paths, missing = answering_checkpoints(run)
        if missing or len(paths) > 1:
            notes.append(f"{run.name} {missing or 'trained several folds, on other rows each'}")
            continue
        saved = replace(read_checkpoint(paths[0]), weights={})
        if not saved.start:
            notes.append(f"{run.name} does not record its initial weights")
            continue
        if not (run / "val.csv").is_file():
            notes.append(f"{run.name} has no validation predictions (val.csv)")
            continue
        ballot = read_ballot(run / "val.csv", labelled=True)
        if sorted(ballot.classes) != sorted(saved.classes):
            raise UserError(f"{run / 'val.csv'}: its classes are not those of {paths[0]}")
        order = [ballot.classes.index(name) for name in saved.classes]
        found.append(
            Candidate(run.name, saved, ballot.ids, ballot.labels or [], ballot.probs[:, order])
        )
    return found, notes


def group_candidates(candidates: Sequence[Candidate], show: Show) -> list[list[Candidate]]:
    """Group what can be averaged: one architecture, look at images, validation and start."""
    groups: list[tuple[str, list[Candidate]]] = []
    for candidate in candidates:
        key = _key(candidate, show)
        for other, group in groups:
            if other == key and _same_start(candidate.saved, group[0].saved):
                group.append(candidate)
                break
        else:
            groups.append((key, [candidate]))
    return [group for _, group in groups]


def _key(candidate: Candidate, show: Show) -> str:
    """All that has to be equal; what training alone used (rates, losses) may differ."""
    saved, config = candidate.saved, candidate.saved.config
    recipe = show(saved)
    rows = sorted(zip(candidate.ids, candidate.labels))
    held_out = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    facts = [
        config.model,
        config.model_args,
        config.heads,
        saved.classes,
        [asdict(attribute) for attribute in saved.attributes],
        saved.image_size,
        saved.mean,
        saved.std,
        asdict(recipe.geometry),
        config.pipeline,
        held_out,
    ]
    return json.dumps(facts, sort_keys=True)


def _same_start(one: Checkpoint, other: Checkpoint) -> bool:
    if len(one.start) != len(other.start):
        return False
    return bool(np.allclose(one.start, other.start, rtol=0, atol=SAME_START))


class Kitchen:
    """Averages the candidates of one group and predicts with the mean; each set once."""

    def __init__(
        self,
        group: Sequence[Candidate],
        build: Build,
        data: Data,
        device: torch.device,
        amp: torch.dtype | None,
        batch_size: int,
    ) -> None:
        self.group, self.data, self.device, self.amp = group, data, device, amp
        self.batch_size = batch_size
        network = build(group[0].saved).to(device)
        self.model = arrange(network, group[0].saved.config.channels_last)
        self._tasted: dict[frozenset[int], np.ndarray] = {}
        self._means: dict[int, dict[str, torch.Tensor]] = {}
        self._sum: tuple[list[int], dict[str, torch.Tensor]] = ([], {})

    def taste(self, members: Sequence[int]) -> np.ndarray:
        """Predict the validation rows [N, C] with the mean of `members`; one alone has done so."""
        if len(members) == 1:
            return self.group[members[0]].probs
        key = frozenset(members)
        if key not in self._tasted:
            self.cook(members)
            self._tasted[key] = self.predict(self.data.folds[0].val)
        return self._tasted[key]

    def cook(self, members: Sequence[int]) -> None:
        """Load the mean of the members' weights into the network, and let batch norms adapt."""
        total = self._total(members)
        mean = {
            name: value / len(members) if value.is_floating_point() else value
            for name, value in total.items()
        }
        fill(self.model, replace(self.group[members[0]].saved, weights=mean))
        adapt_norms(self.model, self._training_images(), resting=self._resting(members))

    def _total(self, members: Sequence[int]) -> dict[str, torch.Tensor]:
        """Sum the members' weights in float64, going on from the sum before where it fits."""
        done, total = self._sum
        if list(members[: len(done)]) != done:
            done, total = [], {}
        done, total = list(done), dict(total)
        for number in members[len(done) :]:
            weights = read_checkpoint(self.group[number].saved.path).weights
            self._means[number] = {n: v for n, v in weights.items() if n.endswith("running_mean")}
            for name, value in weights.items():
                if value.is_floating_point():
                    total[name] = total[name] + value if name in total else value.double()
                else:
                    total.setdefault(name, value)
            done.append(number)
            if len(done) == len(members) - 1:  # the next candidate is added to the same ones
                self._sum = (list(done), dict(total))
        return total

    def _resting(self, members: Sequence[int]) -> set[str]:
        """Name the batch norms that no member's training has moved: they were frozen."""
        first, *rest = (self._means[number] for number in members)
        return {
            name.removesuffix(".running_mean")
            for name, value in first.items()
            if all(torch.equal(value, other[name]) for other in rest)
        }

    def _training_images(self) -> Iterator[torch.Tensor]:
        """Yield augmented training images as a first epoch shows them, up to `NORM_ROWS`."""
        seen, config = 0, self.group[0].saved.config
        for images, _ in self.data.folds[0].train.batches(
            self.batch_size, device=self.device, epoch=0, train=True, seed=config.seed
        ):
            yield ordered(self.model, images)
            seen += len(images)
            if seen >= NORM_ROWS:
                return

    def predict(self, subset: Subset) -> np.ndarray:
        """Predict the rows of a subset with the network as it is, in the views of its first run."""
        names, found = self.group[0].saved.tta, []
        for number in range(tta.number_of_views(names)):
            batches = subset.batches(self.batch_size, device=self.device)
            shown = (
                (ordered(self.model, tta.views(images, names)[number]), targets)
                for images, targets in batches
            )
            found.append(loop.predict(self.model, shown, self.amp).probs)
        return tta.mean_of(found)


@torch.no_grad()
def adapt_norms(
    model: torch.nn.Module, images: Iterable[torch.Tensor], resting: Collection[str] = ()
) -> None:
    """Let batch norms take their statistics anew from training images (Izmailov et al., 2018).

    A mean of statistics is not the statistics of a network with mean weights; those of norms that
    were frozen (`resting`, by name) stay as they are.
    """
    kind = torch.nn.modules.batchnorm._BatchNorm
    norms = [m for name, m in model.named_modules() if isinstance(m, kind) and name not in resting]
    norms = [m for m in norms if m.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts alike
        norm.train()
    for batch in images:
        model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()


def greedy(
    order: Sequence[int],
    taste: Callable[[Sequence[int]], np.ndarray],
    score: Callable[[np.ndarray], float],
    lower: bool,
) -> list[int]:
    """Add candidates, the best first, each kept where the mean scores no worse with it."""
    chosen = [order[0]]
    best = score(taste(chosen))
    for number in order[1:]:
        value = score(taste([*chosen, number]))
        if value <= best if lower else value >= best:
            chosen, best = [*chosen, number], value
    return chosen


def make_soup(
    group: list[Candidate],
    name: str,
    out: Path,
    *,
    build: Build,
    load: Load,
    metric: str = "acc",
    seed: int = 0,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    batch_size: int = 64,
) -> Soup:
    """Average greedily, and write the run folder and the ballot where that gained."""
    group = sorted(group, key=lambda c: c.name)
    ids, probs = group[0].ids, np.stack([_like(c, group[0]) for c in group])
    targets = np.array([group[0].saved.classes.index(word) for word in group[0].labels])
    data = load_same(group[0], targets, load)
    groups = data.folds[0].val.groups
    group = [replace(c, probs=p) for c, p in zip(group, probs)]
    kitchen = Kitchen(group, build, data, device or torch.device("cpu"), amp, batch_size)
    parts = combine.split_parts(ids, targets, groups, 2, seed)
    chooser = Chooser(kitchen, metric, targets)
    single, held = np.empty_like(probs[0]), np.empty_like(probs[0])
    for part in np.unique(parts):
        chosen, best = chooser.choose(parts != part)
        held[parts == part] = kitchen.taste(chosen)[parts == part]
        single[parts == part] = kitchen.taste(best)[parts == part]
    chosen, _ = chooser.choose(np.ones(len(ids), dtype=bool))
    shared = SharedRows(list(range(len(group))), ids, targets, groups, probs)
    honest = compare(VoteOptions(metric=metric), shared, parts, single, held)
    kept = len(chosen) > 1 and honest.gain > 0
    files = _write(kitchen, chosen, name, out, held, honest) if kept else []
    return Soup(name, len(group), [group[k].name for k in chosen], honest, kept, files)


def load_same(first: Candidate, targets: np.ndarray, load: Load) -> Data:
    """Load the data of a candidate; its validation rows must be those that it was scored on."""
    if len(first.ids) < FEWEST_ROWS:
        raise UserError(f"--soup: only {len(first.ids)} validation rows; it needs {FEWEST_ROWS}")
    data = load(first.saved)
    val = data.folds[0].val
    if list(val.ids) != first.ids or list(val.labels) != targets.tolist():
        raise UserError(
            f"--soup: the validation rows of {first.saved.config.data_dir} are not "
            f"those that {first.name} had; have the data as they were"
        )
    return data


@dataclass
class Chooser:
    """Chooses runs to average by their score on some of the rows."""

    kitchen: Kitchen
    metric: str
    targets: np.ndarray

    def choose(self, rows: np.ndarray) -> tuple[list[int], list[int]]:
        """Return the runs to average, and the best single one."""

        def score(probs: np.ndarray) -> float:
            return combine.score(self.metric, probs[rows], self.targets[rows])

        order = combine.ranking(self.metric, [score(c.probs) for c in self.kitchen.group])
        lower = self.metric in combine.LOWER_IS_BETTER
        return greedy(order, self.kitchen.taste, score, lower), order[:1]


def _like(candidate: Candidate, first: Candidate) -> np.ndarray:
    """Return a candidate's predictions in the order of the first one's rows."""
    place = {name: row for row, name in enumerate(candidate.ids)}
    return candidate.probs[[place[name] for name in first.ids]]


def _write(
    kitchen: Kitchen, chosen: list[int], name: str, out: Path, held: np.ndarray, honest: Honest
) -> list[Path]:
    """Write `best.pt`, the cross-fitted `val.csv`, `result.json` and, of test rows, the ballot."""
    kitchen.cook(chosen)
    data = kitchen.data
    names, val = [kitchen.group[k].name for k in chosen], data.folds[0].val
    about = json.dumps(_about(kitchen, chosen, honest))
    weights = {"model": kitchen.model.state_dict(), "about": about}
    tensor_files.save_tensors(out / name / "best.pt", weights)
    labels = [data.classes[k] for k in val.labels]
    write_ballot(out / name / "val.csv", val.ids, data.classes, held, labels)
    files = [out / name]
    if data.test:
        files.append(out / f"{name}.csv")
        write_ballot(files[-1], data.test.ids, data.classes, kitchen.predict(data.test))
    write_json(
        out / name / "result.json",
        {
            "run": name,
            "status": "done",
            "soup": names,
            "score": honest.vote,
            "monitor": f"val_{honest.metric}",
            "held_out": asdict(honest),
            "classes": data.classes,
            "submission": asdict(data.submission),
        },
    )
    return files


def _about(kitchen: Kitchen, chosen: list[int], honest: Honest) -> dict[str, object]:
    """Return what the checkpoint of a soup says of itself."""
    saved = kitchen.group[chosen[0]].saved
    return {
        "config": asdict(saved.config),
        "classes": saved.classes,
        "attributes": [asdict(attribute) for attribute in saved.attributes],
        "image_size": saved.image_size,
        "crop": saved.crop,
        "mean": saved.mean,
        "std": saved.std,
        "epoch": None,
        "scores": {f"val_{honest.metric}": honest.vote},
        "start": saved.start,
        "tta": kitchen.group[0].saved.tta,
        "soup": [kitchen.group[k].name for k in chosen],
    }


def clear(out: Path) -> None:
    """Remove the soups of an earlier time from their folder, and nothing else."""
    for folder in sorted(out.glob("soup-*")):
        if "soup" in read_result(folder):
            folder.with_name(f"{folder.name}.csv").unlink(missing_ok=True)
            shutil.rmtree(folder)


def worded(soup: Soup) -> str:
    """Say what a soup gained, and from how many runs."""
    honest = soup.honest
    error = "" if honest.error is None else f" ± {honest.error:.4f}"
    text = (
        f"soup: {len(soup.chosen)} of {soup.candidates} runs of one start averaged; "
        f"val_{honest.metric} {honest.vote:.4f} on validation rows held out of the choice, "
        f"the best single {honest.best_single:.4f}: gain {honest.gain:+.4f}{error}"
    )
    if not soup.kept:
        return f"{text}; not kept"
    return f"{text}; written: {', '.join(map(str, soup.files))} ({few(soup.chosen, 5)})"
