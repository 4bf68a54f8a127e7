"""One model trained by several processes: what makes them agree with one process alone.

Each takes its share of every batch. The criterion sees the answers to the whole batch, so that any
criterion is what it would be in one process; batch normalisation has the statistics of the whole
batch; gradients are added up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ballot.data.batches import piece
from ballot.training.group import Group


def shares(count: int, size: int) -> list[int]:
    """Return how many of `count` rows each of `size` processes has."""
    return [len(range(*piece(count, rank, size).indices(count))) for rank in range(size)]


def whole_logits(logits: torch.Tensor, counts: list[int], group: Group) -> torch.Tensor:
    """Return the answers of all processes [N, C]; a gradient flows to this one's own alone."""
    start = sum(counts[: group.rank])
    everyone = group.rows(logits.detach(), counts)
    return torch.cat([everyone[:start], logits, everyone[start + len(logits) :]])


def add_gradients(model: nn.Module, group: Group, factor: float) -> None:
    """Replace every gradient by `factor` times its sum over the processes, in one transfer."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = group.add(torch.cat([grad.flatten() for grad in grads]))
    flat.mul_(factor)
    parts = flat.split([grad.numel() for grad in grads])
    for grad, part in zip(grads, parts):
        grad.copy_(part.view_as(grad))


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what trying a step does to buffers, gradients and chance."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
            model.zero_grad(set_to_none=True)


class SharedNorm(TorchFunctionMode):
    """Make every batch normalisation inside one over the batches of all processes.

    At the function and not at the module, of which libraries have kinds of their own.
    """

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self, func: Any, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        y, mean, var, count = _Norm.apply(x, weight, bias, eps, self._group)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (count / (count - 1)), momentum)
        return y


class _Norm(torch.autograd.Function):
    """Batch normalisation over processes (Ioffe and Szegedy, 2015); variances by Chan et al."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        group: Group,
    ) -> tuple[torch.Tensor, ...]:
        dims = [0, *range(2, x.ndim)]
        exact = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(x.to(exact), dims, correction=0)  # [C]
        count = mean.new_full((1,), x.numel() // x.shape[1])
        facts = group.rows(torch.cat([mean, var, count])[None], [1] * group.size)  # [W, 2C + 1]
        means, variances, counts = facts.split([len(mean), len(var), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = ((variances + (means - mean).square()) * counts).sum(0) / total
        y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), total)
        ctx.group, ctx.dims, ctx.exact = group, dims, exact
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.ndim - 2))
        change = dy.to(ctx.exact)
        normed = (x.to(ctx.exact) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([change.sum(ctx.dims), (change * normed).sum(ctx.dims)])  # [2, C]
        means = ctx.group.add(own.clone()) / total
        dx = change - means[0].view(shape) - normed * means[1].view(shape)
        factor = scale if weight is None else scale * weight
        grads = (None, None) if weight is None else (own[1], own[0])
        return (dx * factor.view(shape)).to(dy.dtype), *grads, None, None
