"""Train one model and write its ballot: arguments become a config, a config becomes a trained
model, a model becomes a CSV. Alone it is one training run; started by NNI it is one trial."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what is still being imported

import json
import logging
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

if __name__ == "__main__":
    from ballot.config.command_line import help_first
    from ballot.installed import require

    help_first("train.py", __doc__)  # without torch, which takes seconds
    require("numpy", "torch", "torchvision")

import numpy as np
import torch

from assembly import build_state, choose_metrics, configure, shaped, try_configurations
from ballot.config.command_line import build_parser, parse_command_line
from ballot.config.files import read_config_files
from ballot.config.layers import environment_layer, merge
from ballot.config.schema import Config
from ballot.data.batches import Batch, Data, Fold, Subset
from ballot.data.same_data import check_same_data
from ballot.engines.choose import current_trial
from ballot.engines.trial import Trial
from ballot.errors import CannotWrite, TrialFailed, UserError
from ballot.gpus import Lease, choose_device, on_several
from ballot.prediction import tta
from ballot.runs.files import read_rows, replacing, write_json, write_rows
from ballot.runs.folder import Run, continue_run, open_run, run_name
from ballot.scripts import lasting_main
from ballot.training import loop, process, run_log, signals, tensor_files
from ballot.training.features import ROOM, FrozenFeatures, fit_classifier, take_features
from ballot.training.footprint import Footprint, check_bounds, footprint_of, has_bounds
from ballot.training.group import Group, joined, launch, launched, launched_by_train
from ballot.training.heads import make_heads
from ballot.training.profiler import Clock
from ballot.training.provenance import machine_facts
from ballot.training.recipes import with_recipe
from ballot.training.state import Goal, TrainState
from ballot.training.trackers import TensorBoard, log_best, sending
from ballot.values import Json, Layer
from ballot.vote.ballots import write_answers as write_submission
from ballot.vote.ballots import write_ballot
from ballot.wording import plural
from dataset import load_data
from metrics import Metrics
from model import dropout_before, linear_classifier, model_spec, unfreeze

log = logging.getLogger("train")

# What the HParams page shows in any case, beside what the tuner set.
HPARAMS = (
    "model",
    "criterion",
    "optimizer",
    "scheduler",
    "augmentation",
    "image_size",
    "lr",
    "weight_decay",
    "batch_size",
    "epochs",
    "seed",
)


NO_DATA = (
    "no --data_dir: training on scikit-learn's digits, 1,797 grey images of 8x8 pixels; "
    "--data_dir DIR takes your images"
)
T = TypeVar("T")

EARLY = "early stop"  # of one fold; the others are trained all the same


@dataclass(frozen=True)
class Job:
    """What stays the same while a trial runs."""

    config: Config
    origin: dict[str, str]
    trial: Trial
    run: Run
    data: Data
    metrics: Metrics
    goal: Goal
    group: Group
    device: torch.device
    amp: torch.dtype | None
    stop: signals.Stop


@dataclass
class Outcome:
    """How one fold's training ended, and its best epoch's predictions."""

    status: str = "done"  # done, stopped or failed
    reason: str | None = None
    score: float | None = None
    best_epoch: int = -1  # counted from 0; -1 where none has ended
    epochs: int = 0  # finished
    scores: dict[str, float] = field(default_factory=dict)
    val: Any = None  # float32 array [N, C], where an epoch has ended
    test: Any = None  # [M, C]
    tta: Json = field(default_factory=dict)  # the views that `val` and `test` are of
    signum: int = 0


@lasting_main
def main(argv: list[str] | None = None) -> int:
    """Run one trial and return its exit status."""
    # First of all, and by one of several processes: an engine hands parameters out once.
    trial = current_trial() if launched()[0] == 0 else Trial()
    process.setup_logging()
    run_log.keep_early()
    if trial.warning:
        log.warning(trial.warning)
    with joined() as group:
        trial = group.share(trial)
        return run_alone_or_together(argv, trial if group.is_main else trial.mute(), group)


def run_alone_or_together(argv: list[str] | None, trial: Trial, group: Group) -> int:
    """Read what is wanted, and run it."""
    layers, said = read_layers(argv)
    if said.probe:
        return try_configurations(layers, Path(said.probe))
    layers = [*layers, trial.layer()]
    own = going_on(layers, trial)
    if trial.continues is not None and own is not None:
        continue_run(own.with_name(trial.continues), own)
    layers, decided = with_recipe(layers, saved=own)
    config, origin = configure(layers)
    if said.print_config:
        print(json.dumps({"values": asdict(config), "origin": origin}, indent=2))
        return 0
    if decided and group.is_main:
        log.info(decided)
    if group.size == 1:
        status = spread(config, trial, sys.argv[1:] if argv is None else argv)
        if status is not None:
            return status
    try:
        with signals.stop_on_signals(group.size) as stop:
            return run_trial(config, origin, trial, group, stop)
    except signals.Stopped as stopped:  # before training: waiting for a GPU, reading the data
        if trial.in_search:  # which takes any other end for a failure
            signals.die_of(stopped.signum)
        raise


def going_on(layers: list[Layer], trial: Trial) -> Path | None:
    """Return the folder in which an interrupted run of this trial may lie."""
    config = merge(layers)[0]
    name = config.run_name or trial.name
    return Path(config.out_dir) / name if config.resume == "auto" and name else None


def spread(config: Config, trial: Trial, argv: list[str]) -> int | None:
    """Start several processes where they are wanted, and return the status they end with."""
    gpus = torch.cuda.device_count()
    command = on_several(config.device, gpus, [__file__, *argv], config.processes)
    if command is None:
        return None
    if trial.in_search:
        raise UserError(
            f"device: {config.device!r} with {config.processes} processes; a trial of a search has "
            "one GPU and one process: add --processes 1 --device auto to the trial command"
        )
    if "," in config.device:
        os.environ["CUDA_VISIBLE_DEVICES"] = config.device
    log.info("%s", " ".join(["starting: torchrun", *command]))
    sys.stdout.flush()
    return launch(command)


def read_layers(argv: list[str] | None) -> tuple[list[Layer], Namespace]:
    """Return the layers of the files and of the command line over them, and what else it says."""
    parser = build_parser("train.py", __doc__ or "")
    command_line, said = parse_command_line(parser, argv)
    resumed = command_line.values.get("resume") not in (None, "auto")
    files = read_config_files(said.config, over_a_run=resumed)
    for line in (line for layer in files for line in layer.notes):
        if launched()[0] == 0 and not launched_by_train():
            print(line, file=sys.stderr)
    return [environment_layer(os.environ), *files, command_line], said


def run_trial(
    config: Config, origin: dict[str, str], trial: Trial, group: Group, stop: signals.Stop
) -> int:
    """Data, model, epochs, answers: the story of one trial."""
    lease = lease_device(config, trial, group)
    device = process.pick_device(lease.name, group)
    amp = process.pick_amp(config.amp, device)
    metrics, goal = choose_metrics(config)
    log_setup = run_log.read_log_config(config.log_config)
    spec = model_spec(config.model, config.model_args)
    data = load_data(config, input_size=spec.input_size, mean=spec.mean, std=spec.std)
    folder, resume = group.share(choose_folder(config, trial))
    if resume and group.is_main:
        check_same_data(folder, data.classes, data.split_rows(), data.pixels)
    state = None
    with suppress(TrialFailed):  # a model too large for the device fails below, on record
        state = make_state(config, data, data.folds[0], device, amp, group)
    facts = {
        "monitor": goal.name,
        "mode": goal.mode,
        "trial": trial.id,
        "experiment": trial.experiment,
        "sequence": trial.sequence,
        "continues": trial.continues,
    }
    with open_run(folder, resume=resume, facts=facts, writes=group.is_main) as run:
        if run.writes:
            run_log.log_to(folder, log_setup)
        job = Job(config, origin, trial, run, data, metrics, goal, group, device, amp, stop)
        describe(job)
        with sending(folder, config.tracker if run.writes else (), trial.experiment):
            outcomes: list[Outcome] = []
            for fold in data.folds:
                outcomes.append(train_fold(job, fold, state))
                if outcomes[-1].reason not in (None, EARLY):
                    break
                state = None
            return conclude(job, outcomes)


def lease_device(config: Config, trial: Trial, group: Group) -> Lease:
    """Choose the device of this process, and hold it against other trials."""
    return choose_device(
        "cuda" if "," in config.device else config.device,  # of torchrun's, each takes its own
        trials_per_gpu=config.trials_per_gpu,
        among_trials=trial.in_search and not trial.has_gpus and group.size == 1,
        holder=trial.id or "",
    )


def make_state(
    config: Config,
    data: Data,
    fold: Fold,
    device: torch.device,
    amp: torch.dtype | None,
    group: Group,
) -> TrainState:
    """Make what learns; where it does not fit on one device, it fails on all."""
    with group.together():
        state = build_state(config, data, fold, device, amp, group)
    group.same_weights(state.model)
    if state.ema is not None:
        group.same_weights(state.ema)
    return state


def choose_folder(config: Config, trial: Trial) -> tuple[Path, bool]:
    """Return the run's folder, and whether it may be there already."""
    if config.resume not in (None, "auto"):
        return Path(config.resume), True
    wanted = config.run_name or trial.name
    if config.resume == "auto" and wanted is None:
        raise UserError("resume: auto continues a trial of a search or a --run_name; name the run")
    name = run_name(wanted, config.model, config.criterion)
    return Path(config.out_dir) / name, config.resume == "auto"


def describe(job: Job) -> None:
    """Write down what is run, and say it."""
    run, data, name = job.run, job.data, device_name(job.device)
    if run.writes:
        write_inputs(job)
    run.begin(
        status="running",
        reason=None,
        score=None,
        epochs=0,
        epochs_planned=job.config.epochs * len(data.folds),
        device=name,
        classes=list(data.classes),
        attributes=[asdict(attribute) for attribute in data.attributes],
        image_size=data.image_size,
        data=data.name,
        data_fingerprint=data.fingerprint,
        data_pixels=data.pixels,
        submission=asdict(data.submission),
        processes=job.group.size,
        **machine_facts(),
    )
    if job.config.data_dir is None and job.config.dataset == "auto" and data.name == "digits":
        log.info(NO_DATA)
    fold = data.folds[0]
    tested = f", {len(data.test):,} test" if data.test else ""
    tested += f", {len(data.excluded):,} excluded" if data.excluded else ""
    log.info(
        "%s: %d classes, %s train, %s validation%s, images %d x %d, on %s",
        data.name,
        len(data.classes),
        f"{len(fold.train):,}",
        f"{len(fold.val):,}",
        tested,
        data.image_size,
        data.image_size,
        name,
    )
    log.info("run folder: %s", run.folder)


def write_inputs(job: Job) -> None:
    """Write down every value, the split, and what was left out of it by hand."""
    folder, data = job.run.folder, job.data
    values = asdict(job.config)
    write_json(folder / "config.json", {"values": values, "origin": job.origin})
    write_rows(folder / "split.csv", data.split_rows())
    if data.excluded:
        write_rows(folder / "excluded.csv", [{"id": name} for name in data.excluded])


def device_name(device: torch.device) -> str:
    """Return a name that says which device it was."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def train_fold(job: Job, fold: Fold, state: TrainState | None) -> Outcome:
    """Train a model epoch by epoch, and predict with its best weights."""
    config, folder, outcome = job.config, fold_folder(job, fold), Outcome()
    try:
        begin_fold(job, folder)
        state = state or make_state(config, job.data, fold, job.device, job.amp, job.group)
        parameters = sum(p.numel() for p in state.model.parameters())
        job.run.update(pretrained=state.pretrained, parameters=parameters)
        if has_bounds(config):
            measure_network(job, state, trained=(folder / "last.pt").exists())
        if (folder / "last.pt").exists():
            state.load(folder / "last.pt", job.device)
            log.info("resuming after epoch %d of %d", state.epoch, config.epochs)
        elif config.classifier_start == "fitted" and state.pretrained:
            fit_start(job, fold, state)
        if config.profile and job.run.writes:
            state.clock = Clock(job.device, folder / "trace.json")
        if config.deterministic:
            process.be_deterministic()
        state.features = frozen_features(job, fold, state)
        outcome.reason = learn(job, fold, folder, state)
    except TrialFailed as error:
        outcome = Outcome("failed", reason=str(error))
    except RuntimeError as error:
        if not process.lacks_determinism(error):
            raise
        outcome = Outcome("failed", reason=f"deterministic: {str(error).split('.')[0]}")
    except CannotWrite as error:
        if job.group.size > 1:  # the others do not know of it
            raise
        log.error("%s; the trial ends with what it has", error)
        (folder / "last.pt").unlink(missing_ok=True)  # room for the answers
        outcome = Outcome("done" if (folder / "best.pt").exists() else "failed", reason=str(error))
    except signals.Stopped as stopped:
        reason = job.group.dissolve(stopped.signum) or str(stopped)
        outcome = Outcome("stopped", reason=reason, signum=stopped.signum)
        log.warning("stopped by %s", reason)
    if state is None or state.best_epoch is None or not (folder / "best.pt").exists():
        return outcome
    return keep_best(job, fold, folder, state, outcome)


def begin_fold(job: Job, folder: Path) -> None:
    """Make a fold's folder; a signal that came while the fold before predicted ends it here."""
    job.stop.release()
    if job.run.writes:
        folder.mkdir(exist_ok=True)
    job.group.wait()


def measure_network(job: Job, state: TrainState, *, trained: bool) -> None:
    """Write down what the network costs, once a run; above the bounds it is not trained.

    What has been trained for a while goes on: a time that is measured again is another time.
    """
    known = job.group.share(job.run.result.get("network"))
    if known is None:
        with process.memory_failures("the model does not fit into memory"):
            found = footprint_of(
                state.model, job.data.image_size, job.amp, batch_size=job.config.batch_size
            )
        known = job.group.share(asdict(found))
        job.run.update(network=known)
    if not trained:
        check_bounds(job.config, Footprint(**known))


def fit_start(job: Job, fold: Fold, state: TrainState) -> None:
    """Start the classifier from a logistic regression on the features of the training rows."""
    layer = linear_classifier(state.model)
    if layer is None:
        log.warning("classifier_start: this network has no linear classifier; it starts fresh")
        return
    batches = fold.train.batches(job.config.batch_size, device=job.device)
    if job.config.augmentation_args.get("flip"):  # fitted to what training shows
        again = fold.train.batches(job.config.batch_size, device=job.device)
        batches = chain(batches, ((images.flip(-1), labels) for images, labels in again))

    def weights(of_class: Sequence[int]) -> torch.Tensor | None:
        found = job.data.class_weights(fold, of_class)
        return None if found is None else found.to(job.device)

    heads = make_heads(job.config.heads, job.data.attributes)
    fit_classifier(state.model, layer, shaped(state, batches), job.amp, weights, heads)
    job.group.same_weights(state.model)  # of several processes, to the bit
    if state.ema is not None:
        state.ema.get_submodule("module").load_state_dict(state.model.state_dict())


def frozen_features(job: Job, fold: Fold, state: TrainState) -> FrozenFeatures | None:
    """Compute what a frozen backbone makes of each image once, where that never changes."""
    config, layer = job.config, linear_classifier(state.model)
    thaws = config.unfreeze_epoch is not None and config.unfreeze_epoch < config.epochs
    if config.freeze != "backbone" or thaws or layer is None or fold.train.augmented:
        return None
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    rows = len(fold.train) + len(fold.val) + len(job.data.test or ())
    too_large = 4 * rows * layer.in_features > ROOM
    alone = job.group.size == 1 and not config.compile
    if too_large or not alone or trained != sum(p.numel() for p in layer.parameters()):
        return None
    take_features(state.model, layer, dropout_before(state.model, layer))
    if state.ema is not None:
        averaged = state.scored
        last = linear_classifier(averaged)
        assert last is not None
        take_features(averaged, last, 0.0)

    def images(subset: Subset) -> Iterable[Batch]:
        return shaped(state, subset.batches(config.batch_size, device=job.device))

    log.info("the backbone is frozen: its features are computed once")
    return FrozenFeatures(state.model, layer, images, job.amp)


def fold_folder(job: Job, fold: Fold) -> Path:
    """Return where a fold's files stand: in the run's folder, or in one of its own."""
    several = len(job.data.folds) > 1
    return job.run.folder / f"fold{fold.index}" if several else job.run.folder


def learn(job: Job, fold: Fold, folder: Path, state: TrainState) -> str | None:
    """Train until the last epoch: train, score, write down, report, keep.

    Returns why it ended before the last epoch, if it did.
    """
    config, goal = job.config, job.goal
    history: list[Json]
    history = [row for row in read_rows(folder / "history.csv") if int(row["epoch"]) <= state.epoch]
    for row in () if config.all_rows else history:  # an engine forgets an interrupted trial's
        if row[goal.name]:
            job.trial.report_epoch(float(row[goal.name]))
    with tracker(job, folder, state) as board:
        while state.epoch < config.epochs:
            if reason := why_stop(job, history, state):
                return reason
            if config.unfreeze_epoch is not None and state.epoch >= config.unfreeze_epoch:
                unfreeze(state.model)
            began, first_step = time.monotonic(), state.step
            state.clock.begin(last=state.epoch + 1 == config.epochs)
            trained, scores = one_epoch(job, fold, state)
            seen = goal.name in scores  # in an epoch without validation there may be no such score
            state.schedule.step_epoch(goal.gain(scores[goal.name]) if seen else None)
            state.epoch += 1
            is_best = seen and state.note_best(goal, scores, keep_last=config.all_rows)
            known = known_scores(config, scores)
            row = row_of(job, state, trained, known, time.monotonic() - began)
            history.append(row)
            keep(job, folder, state, history, scores, is_best=is_best)
            if board:
                board.log_steps(first_step, trained.step_losses, trained.step_lrs)
                board.log_epoch(state.step, known)
            job.run.update(epochs=fold.index * config.epochs + state.epoch)
            log.info(epoch_line(config, row, known, is_best))
            if seen and not config.all_rows:
                job.trial.report_epoch(scores[goal.name])
            if table := state.clock.end():
                log.info(table)
    job.group.wait()  # until the first process has written what the others look for
    return None


def known_scores(config: Config, scores: dict[str, T]) -> dict[str, T]:
    """Return the scores that are worth something: none of validation rows that were trained on."""
    if not config.all_rows:
        return scores
    return {name: value for name, value in scores.items() if not name.startswith("val_")}


def why_stop(job: Job, history: list[Json], state: TrainState) -> str | None:
    """Return why no further epoch is begun, if one is not."""
    if job.group.share(out_of_time(job, history)):
        log.info("time limit: no epoch is begun after %d of them", state.epoch)
        return "time limit"
    if worn_out(job.config, state):
        epochs = plural(job.config.early_stop, "epoch")
        log.info("early stop: no better %s in %s", job.goal.name, epochs)
        return EARLY
    return None


def row_of(
    job: Job, state: TrainState, trained: loop.Epoch, scores: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Return an epoch's row of the table; scores of an epoch without validation are empty."""
    return {
        "epoch": state.epoch,
        "lr": trained.step_lrs[-1],
        **known_scores(job.config, dict.fromkeys(score_names(job), "")),
        **scores,
        "seconds": round(seconds, 3),
        "images_per_second": round(trained.images_per_second, 1),
    }


def keep(
    job: Job,
    folder: Path,
    state: TrainState,
    history: list[Json],
    scores: dict[str, float],
    *,
    is_best: bool,
) -> None:
    """Write down an epoch: the weights that are wanted, the table, and where to go on."""
    if not job.run.writes:
        return
    if is_best:
        save_weights(job, folder / "best.pt", state, scores)
    period = job.config.save_period
    if period and state.epoch % period == 0:
        save_weights(job, folder / f"epoch{state.epoch:03d}.pt", state, scores)
    write_rows(folder / "history.csv", history)
    state.save(folder / "last.pt")  # last: a resumed run starts from what this says


def out_of_time(job: Job, history: list[Json]) -> bool:
    """Tell whether another epoch, as long as the past ones, would end after the time limit."""
    if not job.config.time_limit or not history:
        return False
    mean = sum(float(row["seconds"]) for row in history) / len(history)
    return job.run.result["seconds"] + mean > job.config.time_limit


def worn_out(config: Config, state: TrainState) -> bool:
    """Tell whether the monitored score has not become better for as long as is waited for it."""
    if not config.early_stop or state.best_epoch is None:
        return False
    return state.epoch - 1 - state.best_epoch >= config.early_stop


def tracker(job: Job, folder: Path, state: TrainState) -> Any:
    """Open the run's event file, or nothing."""
    if not (wants_board(job.config) and job.run.writes):
        return nullcontext()
    values = asdict(job.config)
    shown = {key: values[key] for key in HPARAMS}
    for key in (key for key, layer in job.origin.items() if layer == "tuner"):
        name, _, argument = key.partition(".")
        shown[key] = values[name][argument] if argument else values[name]
    return TensorBoard(folder / "tensorboard", state.step, shown, job.goal.name)


def one_epoch(job: Job, fold: Fold, state: TrainState) -> tuple[loop.Epoch, dict[str, float]]:
    """Train on every row once, then score the epoch; on validation rows where it is their turn."""
    config, group = job.config, job.group
    # Dropout of several processes is not the same one repeated.
    process.seed_everything(config.seed, state.epoch, *([group.rank] if group.rank else []))
    drawn: Json = {"epoch": state.epoch, "train": True, "seed": config.seed}
    batches: Iterable[Batch]
    if state.features is not None:
        batches = state.features.batches(fold.train, config.batch_size, **drawn)
    else:
        part = (group.rank, group.size)
        images = fold.train.batches(config.batch_size, device=job.device, part=part, **drawn)
        batches = shaped(state, images)
    with progress_bar(config, state, len(fold.train)) as bar:
        trained = loop.train_one_epoch(state, batches, bar)
    scores = {"train_loss": trained.loss}
    stages = [("train", trained.probs, trained.targets)]
    if is_validated(config, state.epoch):
        with state.clock.part("validation"):
            seen = predict(job, state, fold.val, state.criterion)
        scores["val_loss"] = seen.loss
        stages.append(("val", seen.probs, fold.val.labels))
    for stage, probs, labels in stages:
        found = score_rows(job, stage, probs, labels)
        scores.update({f"{stage}_{name}": value for name, value in found.items()})
    for name in ("train_loss", "val_loss", job.goal.name):
        if not math.isfinite(scores.get(name, 0.0)):
            raise TrialFailed(f"{name} stopped being finite in epoch {state.epoch + 1}")
    return trained, scores


def score_rows(job: Job, stage: str, probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score probabilities [N, C] of a stage; of rows not trained on, each attribute too."""
    scores = job.metrics.score(probs, labels, stage=stage)
    for attribute in () if stage == "train" else job.data.attributes:
        part = attribute.probs(probs), attribute.labels(labels)
        found = job.metrics.score(*part, stage=stage)
        scores |= {f"{attribute.name}_{name}": value for name, value in found.items()}
    return scores


def is_validated(config: Config, epoch: int) -> bool:
    """Tell whether validation follows this epoch; under a time limit any may be the last one."""
    ended = epoch + 1
    return ended % config.val_every == 0 or ended == config.epochs or config.time_limit > 0


def score_names(job: Job) -> list[str]:
    """Return the names of all scores of an epoch, in the order of the columns."""
    named = [f"{stage}_{name}" for stage in ("train", "val") for name in job.metrics.names(stage)]
    for attribute in job.data.attributes:
        named += [f"val_{attribute.name}_{name}" for name in job.metrics.names("val")]
    return ["train_loss", "val_loss", *dict.fromkeys(named)]


def predict(
    job: Job,
    state: TrainState,
    subset: Subset,
    criterion: torch.nn.Module | None = None,
    view: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> loop.Predictions:
    """Predict a subset's rows in their order, as they are or in another view."""
    group = job.group
    if state.features is not None and view is None:
        batches = state.features.batches(subset, job.config.batch_size)
        return loop.predict(state.scored, batches, job.amp, criterion)
    part = (group.rank, group.size)
    read = subset.batches(job.config.batch_size, device=job.device, part=part)
    batches = read if view is None else ((view(images), labels) for images, labels in read)
    return loop.predict(state.scored, shaped(state, batches), job.amp, criterion, group)


def progress_bar(config: Config, state: TrainState, total: int) -> Any:
    """Return an epoch's bar where a person watches, lines where they are asked for, or nothing."""
    if config.log_every:
        return run_log.StepLines(config.log_every, state.epoch + 1, total)
    if not process.on_terminal():
        return nullcontext()
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=f"epoch {state.epoch + 1}/{config.epochs}",
        unit="img",
        leave=False,
        dynamic_ncols=True,
        mininterval=0.3,
    )


def save_weights(job: Job, path: Path, state: TrainState, scores: dict[str, float]) -> None:
    """Write an epoch's weights with all that is needed to use them."""
    data = job.data
    about = {
        "config": asdict(job.config),
        "classes": list(data.classes),
        "attributes": [asdict(attribute) for attribute in data.attributes],
        "image_size": data.image_size,
        "crop": data.crop,
        "mean": list(data.mean),
        "std": list(data.std),
        "epoch": state.epoch,
        "scores": scores,
        "start": state.start,
    }
    tensor_files.save_tensors(
        path, {"model": state.scored.state_dict(), "about": json.dumps(about)}
    )


def epoch_line(config: Config, row: Json, scores: dict[str, float], best: bool) -> str:
    """Return an epoch in one line."""
    shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    return (
        f"epoch {row['epoch']}/{config.epochs}  {shown}  lr {row['lr']:.2g}  "
        f"{row['images_per_second']:,.0f} images/s{'  best' if best else ''}"
    )


def keep_best(job: Job, fold: Fold, folder: Path, state: TrainState, outcome: Outcome) -> Outcome:
    """Predict validation and test rows with the best epoch's weights."""
    job.stop.hold()
    job.group.wait()
    # An epoch that was better may not have been written.
    saved, about = state.load_best(folder / "best.pt", job.device)
    outcome.epochs, outcome.best_epoch = state.epoch, about["epoch"] - 1
    outcome.scores, outcome.score = about["scores"], about["scores"][job.goal.name]
    plain = predict(job, state, fold.val).probs
    # Who was told to stop has little time left, and may be killed before further views are done.
    tried = [] if outcome.status == "stopped" else tta.candidates(job.config.tta)
    chosen = tta.choose(
        tried,
        plain,
        fold.val.labels,
        lambda names: predict_views(job, state, fold.val, names),
    )
    if chosen.names and not keep_views(job, folder / "best.pt", saved, chosen.names):
        chosen = tta.Choice([], plain, chosen.val_nll_plain, chosen.val_nll_plain)
    outcome.val = chosen.probs
    outcome.tta = {
        "views": chosen.names,
        "passes": tta.number_of_views(chosen.names),  # through the network for one image
        "val_nll": chosen.val_nll,
        "val_nll_plain": chosen.val_nll_plain,
    }
    if job.data.test:
        outcome.test = predict_views(job, state, job.data.test, chosen.names)
    if outcome.status == "done":  # not before the first step, unless it may be refused for its cost
        with suppress(TrialFailed):  # no memory for it: the predictions are there all the same
            measure_network(job, state, trained=True)
    return outcome


def keep_views(job: Job, path: Path, saved: Json, names: list[str]) -> bool:
    """Write the views into `best.pt`, so that predict.py takes them too; False without room."""
    kept = True
    if job.run.writes:
        about = {**json.loads(saved["about"]), "tta": names}
        try:
            tensor_files.save_tensors(path, {**saved, "about": json.dumps(about)})
        except CannotWrite as error:
            log.warning("%s; predicted without %s", error, ", ".join(names))
            kept = False
    return bool(job.group.share(kept))


def predict_views(job: Job, state: TrainState, subset: Subset, names: Sequence[str]) -> Any:
    """Predict a subset's rows as the mean over their views: float32 array [N, C]."""

    def look(number: int, images: torch.Tensor) -> torch.Tensor:
        return tta.views(images, names)[number]

    numbers = range(1, tta.number_of_views(names))  # the first one is the image as it is
    parts = [predict(job, state, subset).probs]
    parts += [predict(job, state, subset, view=partial(look, k)).probs for k in numbers]
    return tta.mean_of(parts)


def conclude(job: Job, outcomes: list[Outcome]) -> int:
    """Write the answers, report once, and say how it ended."""
    last = outcomes[-1]
    if not job.run.writes:
        return 1 if last.status == "failed" and not job.trial.in_search else 0
    whole = [o for o in outcomes if o.val is not None]
    facts: Json = {"reason": last.reason, "epochs": sum(o.epochs for o in outcomes)}
    if whole:
        facts |= summary(whole)
        if job.config.all_rows:  # its validation rows were training rows
            facts |= {"score": None, "scores": {}}
        facts["test"] = write_answers(job, whole)
        hand_over(job)
        draw_best(job, whole)
    score = facts.get("score")
    if last.status == "failed":
        # A crash teaches a tuner nothing; a floor score keeps it away from there.
        facts["reported"] = score = job.goal.floor(len(job.data.classes))
    job.run.finish(last.status, **facts)
    if score is not None:  # an assessor's victim too: its best so far is what the tuner may learn
        job.trial.report_final(score, failed=last.status == "failed")
    say_the_end(job, last)
    if signum := last.signum or job.stop.signum:
        signals.die_of(signum)
    return 1 if last.status == "failed" and not job.trial.in_search else 0


def summary(outcomes: list[Outcome]) -> Json:
    """Return the mean score over the folds, and each one's best epoch (counted from 1)."""
    names = outcomes[0].scores
    best, views = [o.best_epoch + 1 for o in outcomes], [o.tta for o in outcomes]
    return {
        "score": float(np.mean([o.score for o in outcomes])),
        "scores": {name: float(np.mean([o.scores[name] for o in outcomes])) for name in names},
        "best_epoch": best[0] if len(best) == 1 else best,
        "tta": views[0] if len(views) == 1 else views,
    }


def write_answers(job: Job, outcomes: list[Outcome]) -> dict[str, float]:
    """Write validation rows, the submission and the ballot; return test scores where known."""
    run, data = job.run, job.data
    ids, labels = [], []
    for fold, _ in zip(data.folds, outcomes):
        ids += list(fold.val.ids)
        labels += [data.classes[k] for k in fold.val.labels]
    if not job.config.all_rows:
        val = np.concatenate([o.val for o in outcomes])
        write_ballot(run.folder / "val.csv", ids, data.classes, val, labels)
    if not data.test:
        return {}
    probs = np.stack([o.test for o in outcomes]).mean(axis=0, dtype=np.float64).astype(np.float32)
    columns, answers = data.submission.columns, data.submission.answers
    rows = zip(data.test.ids, (answers[k] for k in probs.argmax(1)))
    write_submission(run.folder / "submission.csv", columns, rows)
    write_ballot(run.soft_csv, data.test.ids, data.classes, probs)
    known = data.test.labels >= 0
    if not known.any():
        return {}
    return score_rows(job, "test", probs[known], data.test.labels[known])


def hand_over(job: Job) -> None:
    """Copy the best weights to where the machine wants models, if it does."""
    if job.config.model_dir is None:
        return
    for path in sorted(job.run.folder.rglob("best.pt")):
        fold = "" if path.parent == job.run.folder else f"-{path.parent.name}"
        with replacing(Path(job.config.model_dir, f"{job.run.name}{fold}.pt"), "wb") as f:
            f.write(path.read_bytes())


def wants_board(config: Config) -> bool:
    """Tell whether TensorBoard files are to be written."""
    return config.tensorboard or "tensorboard" in config.tracker


def draw_best(job: Job, outcomes: list[Outcome]) -> None:
    """Add what the best weights answer to the TensorBoard files."""
    if not wants_board(job.config):
        return
    for fold, outcome in zip(job.data.folds, outcomes):
        log_best(
            fold_folder(job, fold) / "tensorboard",
            outcome.best_epoch + 1,
            outcome.val,
            fold.val.labels,
            job.data.classes,
        )


def say_the_end(job: Job, last: Outcome) -> None:
    """Say the score and where things are, or why there is none."""
    run, result = job.run, job.run.result
    if last.status == "failed":
        log.error("the trial failed: %s", last.reason)
    if result.get("score") is not None:
        tested = "".join(f", test {k} {v:.4f}" for k, v in result.get("test", {}).items())
        log.info(
            "best %s %.4f%s in %.1f s", job.goal.name, result["score"], tested, result["seconds"]
        )
        ballot = run.soft_csv if job.data.test else run.folder / "val.csv"
        log.info("predictions: %s; all other files: %s", ballot, run.folder)
    elif last.status == "stopped":
        log.info("no epoch had ended yet, so there is nothing to keep")
    elif job.config.all_rows and last.status == "done":
        log.info("trained on all rows, so there is no score; all is in %s", run.folder)
    if last.status == "stopped":
        log.info("continue with: python train.py --resume %s", run.folder)


if __name__ == "__main__":
    sys.exit(main())
