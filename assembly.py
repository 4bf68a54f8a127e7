"""What a configuration stands for: the checked `Config`, the scores, and the model that learns.

Shared by `train.py` and by whatever else makes a configuration real, such as the check before a
search, which takes a few steps of some of them.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ballot.config.layers import merge
from ballot.config.schema import FIELDS, Config, parse_monitor
from ballot.data.batches import Batch, Data, Fold
from ballot.data.prepare import make_recipes
from ballot.data.same_data import check_same_data
from ballot.errors import UserError
from ballot.prediction import tta
from ballot.registry import Registry, load_plugins
from ballot.runs.folder import read_config, run_to_resume
from ballot.training import probe, process
from ballot.training.blocks import arrange, ordered
from ballot.training.footprint import check_bounds, footprint_of, has_bounds
from ballot.training.group import Group
from ballot.training.heads import HeadsCriterion, make_heads, tasks_of
from ballot.training.recipes import with_recipe
from ballot.training.state import Goal, TrainState, make_ema, sample_of
from ballot.values import Json, Layer
from dataset import AUGMENTATIONS, DATASETS, load_data
from loss import CRITERIA, check_soft_targets, create_criterion, create_heads_criterion
from metrics import Metrics, create_metrics, lower_is_better
from model import MODELS, adopt_classes, create_model, freeze, keep_statistics, model_spec
from optim import OPTIMIZERS, SCHEDULERS, Schedule, create_optimizer, create_scheduler

log = logging.getLogger(__name__)

# With how many arguments each builder is given before those of the user.
CATALOGUES: dict[str, tuple[Registry, int]] = {
    "model": (MODELS, 2),
    "criterion": (CRITERIA, 1),
    "optimizer": (OPTIMIZERS, 3),
    "scheduler": (SCHEDULERS, 1),
}

# What a file of --plugins says to make a component of a person's own known.
OWN = {
    "model": (
        "from model import MODELS",
        '@MODELS.register("NAME")',
        "def build(num_classes, pretrained, **args): return NAME(num_classes=num_classes, **args)",
    ),
    "criterion": (
        "from loss import CRITERIA",
        '@CRITERIA.register("NAME")',
        "def build(num_classes, **args): return NAME(**args)",
    ),
}

# What a resumed run may be given anew; anything else would make another run of it.
RESUMABLE = {
    "resume",
    "out_dir",
    "model_dir",
    "run_name",
    "epochs",
    "time_limit",
    "device",
    "trials_per_gpu",
    "workers",
    "cache",
    "cache_limit",
    "tensorboard",
    "data_dir",
    "train_dir",
    "val_dir",
    "test_dir",
    "exclude",  # another list leaves other rows, which is refused
    "plugins",
    "pretrained",
    "init_from",
    "early_stop",
    "save_period",
    "log_every",
    "log_config",
    "tracker",
    "experiment",
    "processes",
    "profile",
    "max_params",
    "max_latency",
}


# What a file laid over a resumed run may change besides: how it goes on, and not what it learns.
SETTINGS = ("optimizer", "optimizer_args", "lr", "weight_decay", "scheduler", "scheduler_args")
OVERLAID = {
    *SETTINGS,
    "warmup_epochs",
    "batch_size",
    "accum_steps",
    "clip_grad",
    "criterion",
    "criterion_args",
    "class_weights",
    "augmentation",
    "augmentation_args",
    "sampler",
    "val_every",
}
NO_FILES = ("environment", "command line", "tuner")


def configure(layers: list[Layer]) -> tuple[Config, dict[str, str]]:
    """Lay the layers over each other, and check every name and every argument."""
    config, origin = merge(layers)
    if origin["seed"] == "tuner" and config.split_seed is None:
        # Trials that are compared and vote together are scored on the same rows.
        untuned = merge(layer for layer in layers if layer.name != "tuner")[0]
        config = replace(config, split_seed=untuned.seed)
        origin["split_seed"] = "search"
    if config.resume not in (None, "auto"):
        folder = run_to_resume(Path(config.resume))
        saved = Layer(f"{folder}/config.json", read_config(folder))
        resumed, origin = merge([saved, *layers])
        overlaid = any(layer.name not in NO_FILES for layer in layers)
        refuse_changes(merge([saved])[0], resumed, OVERLAID if overlaid else set())
        config = replace(resumed, resume=str(folder))
    load_plugins(config.plugins, adopt_classes)
    for key, (catalogue, given) in CATALOGUES.items():
        try:
            catalogue.check_args(getattr(config, key), getattr(config, f"{key}_args"), skip=given)
        except UserError as error:
            unknown = key if getattr(config, key) not in catalogue else ""
            raise explained(f"{origin[key]}: {error}", unknown, getattr(config, key)) from None
    AUGMENTATIONS.entry(config.augmentation)
    tta.candidates(config.tta)
    if config.dataset != "auto":
        try:
            DATASETS.entry(config.dataset)
        except UserError as error:
            near = "did you mean" in str(error)
            hint = "" if near else "; --dataset auto reads the images in data_dir"
            raise UserError(f"{origin['dataset']}: {error}{hint}") from None
    return config, origin


def explained(text: str, unknown: str, name: str) -> UserError:
    """Return the error, with what makes a component of a person's own known where one is meant."""
    if unknown not in OWN:
        return UserError(text)
    if "did you mean" in text:  # more likely misspelt
        return UserError(f"{text}; one of your own is known by --plugins FILE")
    hint = "one of your own is known by --plugins FILE, the file it stands in or one that says:"
    return UserError(
        f"{text}; {hint}", example=[line.replace("NAME", name) for line in OWN[unknown]]
    )


def refuse_changes(before: Config, now: Config, allowed: set[str]) -> None:
    """Refuse to resume a run with another value of anything that shapes its result.

    What is `allowed` besides is said.
    """
    changed = {key: (getattr(before, key), value) for key, value in asdict(now).items()}
    changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    for key, (old, value) in changed.items():
        if key not in RESUMABLE | allowed:
            more = "; -c FILE can change it" if key in OVERLAID and not allowed else ""
            raise UserError(
                f"resume: {key} was {old!r} in that run and is {value!r} now; "
                f"leave it out, or start a new run{more}"
            )
    for key in sorted(changed.keys() & allowed):
        log.info("resuming with another %s: %r, was %r", key, changed[key][1], changed[key][0])


def choose_metrics(config: Config) -> tuple[Metrics, Goal]:
    """Return the scores of an epoch, the monitored one among them, and what it aims at."""
    name = config.monitor.split()[-1] if config.monitor.strip() else ""
    stage, _, metric = name.partition("_")
    if stage not in ("train", "val") or not metric:
        raise UserError(f"monitor: {config.monitor!r} is no score; as in 'val_acc', 'min val_loss'")
    stages = dict(create_metrics(config.metrics).stages)
    stages.setdefault("test", stages.get("val", {}))
    if metric != "loss":
        for scored in (stage, "test") if stage == "val" else (stage,):
            if metric not in stages.get(scored, {}):
                added = create_metrics(metric).stages[scored]
                stages[scored] = {**stages.get(scored, {}), **added}
    metrics = Metrics(stages)
    return metrics, Goal(*parse_monitor(config.monitor, lower_is_better(metric)))


def build_state(
    config: Config,
    data: Data,
    fold: Fold,
    device: torch.device,
    amp: torch.dtype | None,
    group: Group | None = None,
) -> TrainState:
    """Make the model, its criterion, its optimiser and its schedule."""
    group = group or Group()
    if config.compile and group.size > 1:
        raise UserError("compile: works with one process; leave it out under torchrun")
    process.seed_everything(config.seed)
    model, pretrained = network_for(config, data)
    start = sample_of(model)
    criterion = criterion_for(config, data, fold)
    with process.memory_failures("the model does not fit into memory"):
        model = arrange(model.to(device), config.channels_last)
        criterion = criterion.to(device)
        ema = make_ema(model, config.ema)
    optimizer, schedule = create_steps(config, model, criterion, rows=len(fold.train))
    hold_still(model, config, pretrained)  # after the optimiser, which steps on what has a gradient
    if config.compile:
        model.compile()
    return TrainState(
        model,
        criterion,
        optimizer,
        schedule,
        pretrained,
        amp,
        clip_grad=config.clip_grad,
        parts=config.accum_steps,
        ema=ema,
        group=group,
        start=start,
        settings={key: getattr(config, key) for key in SETTINGS},
    )


def hold_still(model: nn.Module, config: Config, pretrained: bool) -> None:
    """Freeze what `config` says: weights, and statistics that were learnt elsewhere."""
    if config.freeze:
        freeze(model, config.freeze)
    if config.freeze_norm and pretrained:
        keep_statistics(model)


def network_for(config: Config, data: Data) -> tuple[nn.Module, bool]:
    """Make the model for the classes of `data`; return whether it begins with learnt weights."""
    return create_model(
        config.model,
        len(data.classes),
        pretrained=config.pretrained,
        args=config.model_args,
        init_from=config.init_from,
        image_size=data.image_size,
        heads=make_heads(config.heads, data.attributes),
    )


def criterion_for(config: Config, data: Data, fold: Fold) -> nn.Module:
    """Make the criterion of the joint classes, or of each head, for a fold's targets."""
    heads, args = make_heads(config.heads, data.attributes), config.criterion_args
    weights, classes = partial(data.class_weights, fold), len(data.classes)
    uncertainty = config.head_weights == "uncertainty"
    criterion: nn.Module
    if heads is not None:
        tasks = tasks_of(heads, config.ordinal)
        criterion = create_heads_criterion(
            config.criterion, tasks, weights, uncertainty=uncertainty, args=args
        )
    else:
        if uncertainty or config.ordinal:
            log.warning("head_weights and ordinal have no effect without --heads")
        criterion = create_criterion(config.criterion, classes, weights(), **args)
    if fold.train.targets is not None:
        check_soft_targets(criterion, config.criterion, classes)
    return criterion


def create_steps(
    config: Config, model: nn.Module, criterion: nn.Module, *, rows: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """Make the optimiser of a model, and of what its criterion learns, and the schedule.

    `rows` are those of the training data.
    """
    optimizer = create_optimizer(
        config.optimizer,
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        args=config.optimizer_args,
        no_decay_norm=config.no_decay_norm,
        layer_decay=config.layer_decay,
        beside=criterion.learnt if isinstance(criterion, HeadsCriterion) else (),
    )
    schedule = create_scheduler(
        config.scheduler,
        optimizer,
        epochs=config.epochs,
        steps_per_epoch=math.ceil(rows / config.batch_size),
        warmup_epochs=config.warmup_epochs,
        args=config.scheduler_args,
    )
    return optimizer, schedule


def shaped(state: TrainState, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Put the images into the memory order that the model was put into."""
    return ((ordered(state.model, images), targets) for images, targets in batches)


def try_configurations(layers: list[Layer], wanted: Path) -> int:
    """Try configurations of a search before it starts: a line of JSON for each, and no run."""
    own_start, loaded = probe.process_age(), {}  # type: float, dict[str, Data]
    for number, item in enumerate(json.loads(wanted.read_text(encoding="utf-8"))):
        with probe.answer(number) as facts:
            settled, _ = with_recipe([*layers, Layer("tuner", item["values"])])
            config, _ = configure(settled)
            goal = choose_metrics(config)[1]
            facts |= {
                "model": config.model,
                "monitor": goal.name,
                "mode": goal.mode,
                "epochs": config.epochs,
                "own_start": own_start,
            }
            if item.get("run"):
                data = data_for(config, loaded)
                check_same_data(Path(item["run"]), data.classes, data.split_rows(), data.pixels)
            elif item["steps"]:
                facts |= try_steps(config, loaded)
            else:
                try_components(config, next(iter(loaded.values()), None))
                if has_bounds(config) and loaded:
                    try_bounds(config, loaded)
    return 0


def try_steps(config: Config, loaded: dict[str, Data]) -> Json:
    """Take a few steps, and say how long an epoch would be; data that were loaded are kept."""
    device = process.pick_device(config.device)
    began = time.monotonic()
    data = data_for(config, loaded)
    fold = data.folds[0]
    state = build_state(config, data, fold, device, process.pick_amp(config.amp, device))
    if has_bounds(config):
        check_bounds(config, footprint_of(state.model, data.image_size, state.amp))
    ready = time.monotonic() - began

    def train(epoch: int) -> Iterable[Batch]:
        batches = fold.train.batches(
            config.batch_size, device=device, epoch=epoch, train=True, seed=config.seed
        )
        return shaped(state, batches)

    def val() -> Iterable[Batch]:
        return shaped(state, fold.val.batches(config.batch_size, device=device))

    facts = probe.measure(state, train, val, device)
    rows = {"train": len(fold.train), "val": len(fold.val), "test": len(data.test or ())}
    batches = {name: math.ceil(count / config.batch_size) for name, count in rows.items()}
    return facts | {"ready": ready, "batches": batches, "folds": len(data.folds)}


def data_for(config: Config, loaded: dict[str, Data]) -> Data:
    """Return the data of a configuration, which are loaded once for all that show them alike."""
    spec = model_spec(config.model, config.model_args)
    shape = [
        getattr(config, name)
        for name, f in FIELDS.items()
        if f.metadata["group"] in ("data", "images")
    ]
    key = repr((spec, shape, config.class_weights))
    if key not in loaded:
        loaded[key] = load_data(config, input_size=spec.input_size, mean=spec.mean, std=spec.std)
    return loaded[key]


def try_components(config: Config, data: Data | None) -> None:
    """Make everything but the data and the network, whose arguments `configure` has checked."""
    num_classes, size = (len(data.classes), data.image_size) if data else (10, 64)
    make_recipes(config, config.image_size or size, AUGMENTATIONS)
    create_criterion(config.criterion, num_classes, None, **config.criterion_args)
    optimizer = create_optimizer(
        config.optimizer,
        torch.nn.Linear(2, 2),
        lr=config.lr,
        weight_decay=config.weight_decay,
        args=config.optimizer_args,
    )
    create_scheduler(
        config.scheduler,
        optimizer,
        epochs=config.epochs,
        steps_per_epoch=10,
        warmup_epochs=config.warmup_epochs,
        args=config.scheduler_args,
    )


def try_bounds(config: Config, loaded: dict[str, Data]) -> None:
    """Make the network alone, and compare it with the bounds on its size and its time."""
    if config.image_size is None:  # the data and the network decide
        data = data_for(config, loaded)
    else:
        data = replace(next(iter(loaded.values())), image_size=config.image_size)
    device = process.pick_device(config.device)
    model = arrange(network_for(config, data)[0].to(device), config.channels_last)
    amp = process.pick_amp(config.amp, device)
    check_bounds(config, footprint_of(model, data.image_size, amp))
