"""What a network costs to apply: parameters, multiply-adds, time; and the bounds on them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ballot.config.schema import Config
from ballot.errors import AboveBounds
from ballot.quantities import latency_of, number_of
from ballot.training.blocks import ordered
from ballot.training.process import is_out_of_memory, precision

SECONDS = 0.15  # that each of the two measurements takes, after a first image
MOST_IMAGES = 64  # of the batch that throughput is measured with


@dataclass(frozen=True)
class Footprint:
    """The cost of one network; `multiply_adds` and `latency` (seconds) are of one image.

    None is what could not be counted or measured. Throughput is of a batch, in images a second,
    of the network alone: nothing is decoded.
    """

    parameters: int
    multiply_adds: int | None
    latency: float
    images_per_second: float | None


def footprint_of(
    model: nn.Module, image_size: int, amp: torch.dtype | None = None, *, batch_size: int = 1
) -> Footprint:
    """Count and measure `model` on its device, in less than a second where it is not large.

    The latency is the median of several images, each by itself; a batch has as many images as take
    about as long. No weight, statistic or random state changes.
    """
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # or other shapes are compiled for this
            latency = _latency(model, image_size, amp)
            return Footprint(
                sum(p.numel() for p in model.parameters()),
                multiply_adds(model, image_size),
                latency,
                _throughput(model, image_size, amp, latency, batch_size),
            )
    finally:
        model.train(training)


@torch.no_grad()
def multiply_adds(model: nn.Module, image_size: int) -> int | None:
    """Count what matrix products and convolutions multiply for one image, without arithmetic."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: value.to("meta") for name, value in state.items()}
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            torch.func.functional_call(model, state, image)
    except Exception:  # whatever a network does that the meta device cannot, as reading a value
        return None
    return int(counter.get_total_flops()) // 2


def _latency(model: nn.Module, image_size: int, amp: torch.dtype | None) -> float:
    """Return the median seconds of one image, after a first one that sets things up."""
    image = _images(model, image_size, 1)
    _seconds(model, image, amp)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or (time.perf_counter() < end and len(times) < MOST_IMAGES):
        times.append(_seconds(model, image, amp))
    return median(times)


def _throughput(
    model: nn.Module, image_size: int, amp: torch.dtype | None, latency: float, most: int
) -> float | None:
    most = min(most, MOST_IMAGES)
    on_cpu = next(model.parameters()).device.type == "cpu"
    count = max(1, min(most, int(SECONDS / latency))) if on_cpu else most
    try:
        images = _images(model, image_size, count)
        if not on_cpu:
            _seconds(model, images, amp)  # kernels are chosen by the size of the batch
        return count / _seconds(model, images, amp)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _images(model: nn.Module, image_size: int, count: int) -> torch.Tensor:
    device = next(model.parameters()).device
    return ordered(model, torch.zeros(count, 3, image_size, image_size, device=device))


@torch.inference_mode()
def _seconds(model: nn.Module, images: torch.Tensor, amp: torch.dtype | None) -> float:
    """Return how long the logits of a batch take to be there."""
    began = time.perf_counter()
    with precision(images, amp):
        model(images)[:1, :1].cpu()  # which waits for the device
    return time.perf_counter() - began


def has_bounds(config: Config) -> bool:
    """Tell whether a network may be refused for its size or its time."""
    return config.max_params is not None or config.max_latency is not None


def check_bounds(config: Config, found: Footprint) -> None:
    """Let a trial end whose network is larger or slower than was asked for."""
    name, few, soon = config.model.removeprefix("timm:"), config.max_params, config.max_latency
    if few is not None and found.parameters > number_of(few):
        what = f"{name} has {found.parameters:,} parameters"
        raise AboveBounds(f"max_params: {what}, more than {few}")
    if soon is not None and found.latency > latency_of(soon):
        what = f"{name} takes {1000 * found.latency:.3g} ms for an image"
        raise AboveBounds(f"max_latency: {what}, more than {soon}")
