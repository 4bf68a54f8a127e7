"""Optimisers and schedules of the learning rate."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ballot.errors import UserError
from ballot.registry import Entry, Registry
from ballot.training.blocks import blocks
from ballot.values import Json, Values

log = logging.getLogger(__name__)

OPTIMIZERS = Registry("optimizer")
SCHEDULERS = Registry("scheduler")
# Those of which PyTorch has a step in one kernel, several times as fast (bench/steps.py).
FUSED = ("Adam", "AdamW", "SGD")
# Of the learning rate, for single numbers that a few hundred steps must be able to move by 1.
FASTER = 10.0


# ---------------------------------------------------------------------------------- optimisers


def create_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    args: Values | None = None,
    no_decay_norm: bool = False,
    layer_decay: float = 1.0,
    beside: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build the optimiser `name` over the parameters of `model` that are trained.

    `no_decay_norm` takes the weight decay off norms and biases; `layer_decay` multiplies the
    learning rate by itself from each block to the one before it. Parameters `beside` the model, of
    its criterion, learn faster and do not decay. Wrong names and arguments are a `UserError`.
    """
    groups = param_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        no_decay_norm=no_decay_norm,
        layer_decay=layer_decay,
    )
    if beside:
        rate = FASTER * lr
        groups.append({"params": list(beside), "lr": rate, "weight_decay": 0.0, "beside": True})
    args = {key: tuple(v) if isinstance(v, list) else v for key, v in (args or {}).items()}
    return OPTIMIZERS.create(name, groups, lr, weight_decay, args=args)


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    no_decay_norm: bool = False,
    layer_decay: float = 1.0,
) -> list[Json]:
    """Group the parameters that are trained by learning rate and weight decay, in order of depth.

    Norms and biases are the parameters of one dimension, and those that the model itself names in
    `no_weight_decay()`. Every parameter stands in one group.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UserError("freeze: no parameter is left to train; freeze fewer blocks")
    spared = set(getattr(model, "no_weight_decay", set)()) if no_decay_norm else set()
    depth = {name: i for i, block in enumerate(blocks(model)) for name in block}
    last = max(depth.values())
    groups: dict[tuple[float, float], Json] = {}
    for name, p in sorted(named.items(), key=lambda item: depth[item[0]]):
        bare = no_decay_norm and (p.ndim <= 1 or name in spared)
        rate, decay = lr * layer_decay ** (last - depth[name]), 0.0 if bare else weight_decay
        group = {"params": [], "lr": rate, "weight_decay": decay}
        groups.setdefault((rate, decay), group)["params"].append(p)
    return list(groups.values())


def _register_torch() -> None:
    """Register every optimiser of `torch.optim` that takes any parameter and its gradient."""
    # LBFGS needs a closure, SparseAdam sparse gradients, Muon matrices only (timm:muon takes all).
    special = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
    for name, cls in sorted(vars(torch.optim).items()):
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and name not in special:
            OPTIMIZERS.register(name)(_torch_builder(cls))


def _torch_builder(cls: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    make: Callable[..., torch.optim.Optimizer] = cls
    decays = "weight_decay" in inspect.signature(cls).parameters

    def build(params: Any, lr: float, weight_decay: float, **args: Any) -> torch.optim.Optimizer:
        if cls.__name__ in FUSED and "foreach" not in args:
            args.setdefault("fused", _can_be_fused(params))
        if not decays:
            params = _without_decay(cls.__name__, params, weight_decay)
        return _checked(cls.__name__, functools.partial(make, params, lr=lr, **args))

    build.__signature__ = _signature(cls)  # type: ignore[attr-defined]
    build.__doc__ = f"`torch.optim.{cls.__name__}`."
    return build


def _can_be_fused(groups: Iterable[Values]) -> bool:
    """Tell whether PyTorch has one kernel for a step of all these parameters."""
    params = [p for group in groups for p in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)


def _signature(cls: Callable[..., object]) -> inspect.Signature:
    """`(params, lr, weight_decay, *, ...)` with what a person may set of the class's arguments."""
    given = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("params", "lr", "weight_decay")
    ]
    # Ascending, or keeping the graph of a step, is not what a trial is about.
    hidden = {"params", "lr", "weight_decay", "maximize", "differentiable", "kwargs"}
    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(cls).parameters.values()
        if p.name not in hidden
    ]
    return inspect.Signature(given + own)


def _without_decay(name: str, params: Any, weight_decay: float) -> list[Json]:
    if weight_decay:
        log.warning("optimizer %s has no weight decay: %g has no effect", name, weight_decay)
    return [{k: v for k, v in group.items() if k != "weight_decay"} for group in params]


def _checked(name: str, build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    try:
        return build()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"optimizer_args: optimizer {name!r} refuses them; {error}") from error


_register_torch()


def _timm_names() -> Iterable[str]:
    """List timm's optimisers, less those that need other packages, a compiler or second order."""
    from timm.optim import list_optimizers

    names = list_optimizers(exclude_filters=["bnb*", "fused*", "kron*", "adahessian"])
    return [f"timm:{name}" for name in names]


@OPTIMIZERS.family("timm:", _timm_names)
def _timm_optimizer(name: str) -> Entry:
    from timm.optim import create_optimizer_v2, get_optimizer_class

    short = name.removeprefix("timm:")

    def build(params: Any, lr: float, weight_decay: float, **args: Any) -> torch.optim.Optimizer:
        # The groups carry the weight decay already; what timm is told is only for its defaults.
        make = functools.partial(create_optimizer_v2, params, opt=short, lr=lr, **args)
        return _checked(name, functools.partial(make, weight_decay=weight_decay))

    taken = _signature(get_optimizer_class(short, bind_defaults=False))
    build.__signature__ = taken  # type: ignore[attr-defined]
    return Entry(name, build)


# ----------------------------------------------------------------------------------- schedules


def create_scheduler(
    name: str,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    args: Values | None = None,
) -> Schedule:
    """Build the schedule `name` for `optimizer`, whose learning rate of now is its highest.

    In the first `warmup_epochs` the rate rises from zero in a straight line. Schedules of steps
    count their epochs from the beginning, smooth ones (`cosine`, `onecycle`) start after it.
    """
    if warmup_epochs >= epochs:
        raise UserError(
            f"warmup_epochs: {warmup_epochs:g} epochs of warm-up in {epochs}; use fewer"
        )
    entry = SCHEDULERS.entry(name)
    smooth = entry.info.get("smooth", False)
    curve = SCHEDULERS.create(name, epochs - warmup_epochs if smooth else epochs, args=args)
    delay = warmup_epochs if smooth else 0.0
    return Schedule(optimizer, curve, steps_per_epoch, warmup_epochs, delay)


class Schedule:
    """Sets the learning rate of every group to its own highest times `curve(epoch)`.

    A curve is a function of the time in epochs (a float) to a factor. One with a method
    `observe(score)` is told the monitored score after every epoch, where higher is better, and
    its attributes, which must be plain values, are part of the state.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        curve: Callable[[float], float],
        steps_per_epoch: int,
        warmup_epochs: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self.optimizer, self.curve = optimizer, curve
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.warmup_epochs, self.delay = warmup_epochs, delay
        self.epoch = self.step = 0
        for group in optimizer.param_groups:
            # As PyTorch's own: saved with the optimiser, so that it survives a resume.
            group.setdefault("initial_lr", group["lr"])
        self._apply()

    @property
    def lr(self) -> float:
        """The highest learning rate of any group of the model."""
        groups = self.optimizer.param_groups
        return max(float(group["lr"]) for group in groups if "beside" not in group)

    def factor(self) -> float:
        """Return what the learning rates are multiplied by for the next step."""
        done = self.epoch + min(self.step / self.steps_per_epoch, 1.0)
        if done >= self.warmup_epochs:
            return self.curve(done - self.delay)
        # The first step must move: it has the rate that a line from zero reaches at its end.
        rising = min((done + 1 / self.steps_per_epoch) / self.warmup_epochs, 1.0)
        return rising * self.curve(max(done - self.delay, 0.0))

    def step_batch(self) -> None:
        """Go on after a step of the optimiser."""
        self.step += 1
        self._apply()

    def step_epoch(self, score: float | None = None) -> None:
        """Go on after an epoch with the monitored score, turned so that higher is better."""
        self.epoch, self.step = self.epoch + 1, 0
        if score is not None and hasattr(self.curve, "observe"):
            self.curve.observe(score)
        self._apply()

    def state_dict(self) -> Json:
        """Return plain values only, for a checkpoint."""
        observed = dict(vars(self.curve)) if hasattr(self.curve, "observe") else {}
        return {"epoch": self.epoch, "step": self.step, "curve": observed}

    def load_state_dict(self, state: Values) -> None:
        """Continue where `state_dict` was taken."""
        self.epoch, self.step = state["epoch"], state["step"]
        if hasattr(self.curve, "observe"):
            vars(self.curve).update(state["curve"])
        self._apply()

    def _apply(self) -> None:
        factor = self.factor()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


@SCHEDULERS.register("multistep")
def multistep(
    epochs: int, *, milestones: list[float] | None = None, gamma: float = 0.1
) -> Callable[[float], float]:
    """Multiply by `gamma` at each of `milestones`: 1/3, 2/3 and 5/6 of the epochs by default.

    That is 10, 20 and 25 of 30 epochs, as ResNets have been trained for long.
    """
    if milestones is None:
        # A set: in a trial of two epochs all three would fall together and end the training.
        milestones = list({max(1, epochs * sixths // 6) for sixths in (2, 4, 5)})
    _numbers("milestones", milestones)
    _positive("gamma", gamma)
    ends = sorted(milestones)
    return lambda epoch: gamma ** sum(end <= epoch + EPSILON for end in ends)


@SCHEDULERS.register("step")
def step(epochs: int, *, step_size: float = 10, gamma: float = 0.1) -> Callable[[float], float]:  # noqa: ARG001
    """Multiply by `gamma` every `step_size` epochs."""
    _positive("step_size", step_size)
    _positive("gamma", gamma)
    return lambda epoch: gamma ** math.floor((epoch + EPSILON) / step_size)


@SCHEDULERS.register("cosine", smooth=True)
def cosine(epochs: float, *, min_factor: float = 0.0) -> Callable[[float], float]:
    """Half a cosine from one to `min_factor`, step by step (Loshchilov and Hutter, 2017)."""
    _between("min_factor", min_factor)
    return lambda epoch: _anneal(1.0, min_factor, epoch / epochs)


@SCHEDULERS.register("onecycle", smooth=True)
def onecycle(
    epochs: float,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Callable[[float], float]:
    """Up in the share `pct_start` of the time and down again (Smith and Topin, 2018).

    From 1 / `div_factor` to 1, then to that start divided by `final_div_factor`, in half cosines.
    """
    _between("pct_start", pct_start)
    _positive("div_factor", div_factor)
    _positive("final_div_factor", final_div_factor)
    start, top = 1 / div_factor, pct_start * epochs

    def curve(epoch: float) -> float:
        if epoch < top:
            return _anneal(start, 1.0, epoch / top)
        return _anneal(1.0, start / final_div_factor, (epoch - top) / max(epochs - top, EPSILON))

    return curve


@SCHEDULERS.register("plateau")
def plateau(
    epochs: int,  # noqa: ARG001
    *,
    factor: float = 0.1,
    patience: int = 3,
    threshold: float = 1e-4,
    cooldown: int = 0,
    min_factor: float = 0.0,
) -> Plateau:
    """Multiply by `factor` after more than `patience` epochs without a better score.

    Better means by more than `threshold`; `cooldown` epochs after a cut are not counted.
    """
    _between("factor", factor)
    _between("min_factor", min_factor)
    for name, value in (("patience", patience), ("threshold", threshold), ("cooldown", cooldown)):
        _number(name, value, value >= 0 if isinstance(value, (int, float)) else False, "0 or more")
    return Plateau(factor, patience, threshold, cooldown, min_factor)


@SCHEDULERS.register("constant")
def constant(epochs: int) -> Callable[[float], float]:  # noqa: ARG001
    """Leave the learning rate as it is."""
    return lambda epoch: 1.0  # noqa: ARG005


class Plateau:
    """See `plateau`; the same decisions as PyTorch's `ReduceLROnPlateau`."""

    def __init__(
        self, factor: float, patience: int, threshold: float, cooldown: int, min_factor: float
    ) -> None:
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.cooldown, self.min_factor = cooldown, min_factor
        self.best, self.bad, self.resting, self.now = -math.inf, 0, 0, 1.0

    def __call__(self, epoch: float) -> float:  # noqa: ARG002
        return self.now

    def observe(self, score: float) -> None:
        """Take the score of an epoch; one that is not a number is no better than any."""
        if score > self.best + self.threshold:
            self.best, self.bad = score, 0
        else:
            self.bad += 1
        if self.resting:
            self.resting, self.bad = self.resting - 1, 0
        if self.bad > self.patience:
            self.now = max(self.now * self.factor, self.min_factor)
            self.resting, self.bad = self.cooldown, 0


EPSILON = 1e-9  # epochs: a time made by a division may fall short of the milestone it means


def _anneal(start: float, end: float, share: float) -> float:
    """Return the value of half a cosine from `start` to `end` at `share` of its way."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


def _number(name: str, value: object, holds: bool, words: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds:
        raise UserError(f"scheduler_args: {name} is {value!r}; it must be {words}")


def _positive(name: str, value: object) -> None:
    fits = isinstance(value, (int, float)) and 0 < value < math.inf
    _number(name, value, fits, "a number greater than 0")


def _between(name: str, value: object) -> None:
    fits = isinstance(value, (int, float)) and 0 <= value <= 1
    _number(name, value, fits, "a number from 0 to 1")


def _numbers(name: str, values: object) -> None:
    if not isinstance(values, (list, tuple)):
        raise UserError(f"scheduler_args: {name} is {values!r}; it must be a list of epochs")
    for value in values:
        _positive(name, value)
