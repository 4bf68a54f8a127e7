"""Augmentations on whole batches, with chance of its own for every image.

A step takes images [B, 3, H, W] (uint8, or float in 0..255) and a numpy generator, and returns
images of the same scale. A random transform of torchvision draws once a call, so that a whole
batch would be turned alike: the common ones are written here for batches, the others are called
image by image.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ballot.data.images import Geometry, one_thread, sent
from ballot.errors import UserError, suggest
from ballot.values import Values

Step = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
# Mixing takes targets too, [B] int64 or [B, C] float: (images, targets, rng) -> images, targets
# [B, C] float.
Mixer = Callable[
    [torch.Tensor, torch.Tensor, np.random.Generator], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class Recipe:
    """An augmentation: how training images are decoded, what is done to them, how others look.

    `normalised` says that the steps end with a normalisation of their own.
    """

    geometry: Geometry
    steps: tuple[Step, ...] = ()
    plain: Geometry | None = None  # for validation and test; none stands for `geometry`
    normalised: bool = False


def flip(p: float = 0.5) -> Step:
    """Mirror each image with probability `p`."""
    _check_share("flip", p)

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.random(len(images)) < p
        if images.device.type != "cpu":
            mask = sent(torch.from_numpy(chosen), images.device).view(-1, 1, 1, 1)
            return torch.where(mask, images.flip(-1), images)
        with one_thread():
            for k in np.flatnonzero(chosen):  # 20 times faster on a CPU than indexing the batch
                images[k] = images[k].flip(-1)
        return images

    return step


def affine(
    degrees: float = 15.0, translate: float = 0.1, scale: Sequence[float] = (0.9, 1.1)
) -> Step:
    """Turn, shift (in shares of the side) and zoom each image; what comes in is its reflection."""
    low, high = _pair("scale", scale)
    _check_number("degrees", degrees)
    _check_share("translate", translate)
    if low <= 0:
        raise UserError(f"augmentation_args: scale is {tuple(scale)}; factors are above 0")

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        count = len(images)
        angle = np.deg2rad(rng.uniform(-degrees, degrees, count))
        zoom = rng.uniform(low, high, count)
        theta = np.zeros((count, 2, 3), dtype=np.float32)
        theta[:, 0, 0] = theta[:, 1, 1] = np.cos(angle) / zoom
        theta[:, 1, 0], theta[:, 0, 1] = np.sin(angle) / zoom, -np.sin(angle) / zoom
        theta[:, :, 2] = rng.uniform(-2 * translate, 2 * translate, (count, 2))
        matrix = sent(torch.from_numpy(theta), images.device)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )

    return step


def crop(area: Sequence[float] = (0.35, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)) -> Step:
    """Cut a part of each image and enlarge it to the whole, as Szegedy et al. (2015) train.

    `area` is the part's share of the image, `ratio` its width for each unit of its height: both
    are drawn, and so is the place; a side that would not fit is cut to the image's.
    """
    low, high = _pair("area", area)
    thin, wide = _pair("ratio", ratio)
    if low <= 0 or high > 1:
        raise UserError(f"augmentation_args: area is {tuple(area)}; shares go from above 0 to 1")
    if thin <= 0:
        raise UserError(f"augmentation_args: ratio is {tuple(ratio)}; ratios are above 0")

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        count = len(images)
        share = rng.uniform(low, high, count)
        shape = np.exp(rng.uniform(math.log(thin), math.log(wide), count))
        sides = np.minimum(np.sqrt(np.stack([share * shape, share / shape])), 1)  # width, height
        theta = np.zeros((count, 2, 3), dtype=np.float32)
        theta[:, 0, 0], theta[:, 1, 1] = sides
        theta[:, :, 2] = (rng.uniform(-1, 1, (2, count)) * (1 - sides)).T
        matrix = sent(torch.from_numpy(theta), images.device)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )

    return step


def noise(std: float = 0.02) -> Step:
    """Add Gaussian noise to each image, with a strength drawn up to `std` (of 0..1)."""
    _check_number("std", std)

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        strength = _column(rng.uniform(0, std * 255, len(images)), images)
        chance = torch.Generator(images.device).manual_seed(int(rng.integers(2**63)))
        drawn = torch.randn(images.shape, generator=chance, device=images.device)
        return torch.addcmul(images.float(), drawn, strength).clamp_(0, 255)

    return step


def blur(sigma: Sequence[float] = (0.1, 1.5)) -> Step:
    """Blur each image by a Gaussian whose width in pixels is drawn from `sigma`."""
    low, high = _pair("sigma", sigma)
    if low <= 0:
        raise UserError(f"augmentation_args: sigma is {tuple(sigma)}; widths are above 0")
    reach = max(1, math.ceil(3 * high))

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        count, channels, high_px, wide_px = images.shape
        pad = min(reach, high_px - 1, wide_px - 1)
        widths = sent(torch.from_numpy(rng.uniform(low, high, count)), images.device)
        offsets = torch.arange(-pad, pad + 1, device=images.device)
        kernel = torch.exp(-0.5 * (offsets / widths[:, None]) ** 2)  # [B, K]
        kernel = (kernel / kernel.sum(1, keepdim=True)).float().repeat_interleave(channels, 0)
        flat = images.float().reshape(1, count * channels, high_px, wide_px)
        flat = F.pad(flat, (pad, pad, pad, pad), mode="reflect")
        flat = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
        flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
        return flat.view(images.shape)

    return step


def jitter(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Step:
    """Change brightness, contrast and saturation of each image by factors of 1 +- the argument."""
    _check_number("brightness", brightness)
    _check_number("contrast", contrast)
    _check_number("saturation", saturation)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601 luma

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        count = len(images)
        images = images.float()
        weights = sent(grey, images.device)

        def factor(spread: float) -> torch.Tensor:
            return _column(rng.uniform(max(0, 1 - spread), 1 + spread, count), images)

        if brightness:
            images = (images * factor(brightness)).clamp_(0, 255)
        if contrast:
            mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            images = torch.lerp(mean.expand_as(images), images, factor(contrast)).clamp_(0, 255)
        if saturation:
            luma = (images * weights).sum(1, keepdim=True)
            images = torch.lerp(luma.expand_as(images), images, factor(saturation)).clamp_(0, 255)
        return images

    return step


def erase(p: float = 0.25, area: Sequence[float] = (0.02, 0.2)) -> Step:
    """Cover a rectangle of each image with a drawn colour (random erasing, Zhong et al., 2020)."""
    _check_share("p", p)
    low, high = _pair("area", area)
    _check_share("area", low)
    _check_share("area", high)

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        tall, wide = images.shape[-2:]
        for k in np.flatnonzero(rng.random(len(images)) < p):
            share, ratio = rng.uniform(low, high), math.exp(rng.uniform(-1.2, 1.2))
            h = min(tall, max(1, round(math.sqrt(share * ratio) * tall)))
            w = min(wide, max(1, round(math.sqrt(share / ratio) * wide)))
            top, left = rng.integers(tall - h + 1), rng.integers(wide - w + 1)
            colour = sent(torch.from_numpy(rng.integers(0, 256, 3)), images.device).to(images)
            images[k, :, top : top + h, left : left + w] = colour[:, None, None]
        return images

    return step


def each(transform: Callable[[torch.Tensor], torch.Tensor], name: str = "transform") -> Step:
    """Call a torchvision transform image by image, each with chance of its own."""

    def step(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        seeds = rng.integers(2**63, size=len(images))
        with _own_chance(images.device) as reseed:
            done = []
            for image, seed in zip(images, seeds):
                reseed(int(seed))
                done.append(torch.as_tensor(transform(image)))
        if len({tuple(image.shape) for image in done}) > 1:
            raise UserError(f"pipeline: images are of different sizes after {name}; add a Resize")
        return torch.stack(done)

    return step


@contextlib.contextmanager
def _own_chance(device: torch.device) -> Iterator[Callable[[int], object]]:
    """Lend torch's global generators, which transforms draw from, and put them back."""
    host = torch.get_rng_state()
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def reseed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if there is not None:
            torch.cuda.manual_seed(seed)

    try:
        yield reseed
    finally:
        torch.set_rng_state(host)
        if there is not None:
            torch.cuda.set_rng_state(there, device)


def mixing(num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> Mixer | None:
    """Blend pairs of images (mixup) or exchange boxes of them (cutmix); None where both are 0.

    Zhang et al., 2018, and Yun et al., 2019. Both arguments are the alpha of Beta(alpha, alpha);
    with both, each image draws which.
    Targets become shares of the classes [B, C], by what is really seen of each image.
    """
    _check_number("mixup", mixup)
    _check_number("cutmix", cutmix)
    if not (mixup or cutmix):
        return None

    def mix(
        images: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(images)
        partner = sent(torch.from_numpy(rng.permutation(count)), images.device)
        boxed = rng.random(count) < (0.5 if mixup and cutmix else float(bool(cutmix)))
        alpha = np.where(boxed, cutmix or 1.0, mixup or 1.0)
        keep = rng.beta(alpha, alpha)
        masks, shares = _masks(images.shape, keep, boxed, rng)
        images = images.float()
        images = torch.lerp(images[partner], images, sent(masks, images.device))
        share = sent(shares, images.device)[:, None]
        soft = targets if targets.ndim == 2 else F.one_hot(targets, num_classes).float()
        return images, soft * share + soft[partner] * (1 - share)

    return mix


def _masks(
    shape: Sequence[int], keep: np.ndarray, boxed: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [B, 1, H, W] of the own image in each pixel, and its mean [B]."""
    count, _, tall, wide = shape
    masks = torch.from_numpy(keep).float().view(count, 1, 1, 1).repeat(1, 1, tall, wide)
    for k in np.flatnonzero(boxed):
        masks[k] = 1.0
        side = math.sqrt(1 - keep[k])
        y, x = rng.integers(tall), rng.integers(wide)
        h, w = side * tall / 2, side * wide / 2
        top, bottom = round(max(y - h, 0)), round(min(y + h, tall))
        left, right = round(max(x - w, 0)), round(min(x + w, wide))
        masks[k, :, top:bottom, left:right] = 0.0
    return masks, masks.mean((1, 2, 3))


def _column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return sent(torch.from_numpy(values).float(), like.device).view(-1, 1, 1, 1)


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"augmentation_args: {name} is {value!r}; it takes a number from 0 on")


def _check_share(name: str, p: float) -> None:
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise UserError(f"augmentation_args: {name} is {p!r}; it takes a share between 0 and 1")


def _pair(name: str, value: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = value
        if low <= high:
            return float(low), float(high)
    except (TypeError, ValueError):
        pass
    raise UserError(f"augmentation_args: {name} is {value!r}; it takes a lower and an upper bound")


# What needs a whole batch, a function or boxes cannot be named in a pipeline.
ELSEWHERE = {
    "MixUp": "use augmentation_args.mixup",
    "CutMix": "use augmentation_args.cutmix",
    "Lambda": "write an augmentation in a plugin",
}
NOTHING = ("ToImage", "PILToTensor", "ToPureTensor")  # what images are already


def transforms_by_name() -> dict[str, type]:
    """The transforms that a pipeline can name: torchvision.transforms.v2's."""
    from torchvision.transforms import v2

    found = {n: c for n, c in vars(v2).items() if inspect.isclass(c) and n[0].isupper()}
    return {n: c for n, c in found.items() if issubclass(c, torch.nn.Module) and n != "Transform"}


def make_transform(name: str, args: object, where: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make the transform `name` with its `args` (an object, or null for none)."""
    known = transforms_by_name()
    if name in ELSEWHERE:
        raise UserError(f"{where}: {name} cannot stand in a pipeline; {ELSEWHERE[name]}")
    if name not in known:
        raise UserError(f"{where}: torchvision has no transform {name!r}{suggest(name, known)}")
    if args is not None and not isinstance(args, Mapping):
        raise UserError(f"{where}: the arguments of {name} are {args!r}; they stand in an object")
    given = {key: _argument(key, value, f"{where}.{name}") for key, value in (args or {}).items()}
    usable = inspect.signature(known[name]).parameters
    for key in given:
        if key not in usable:
            raise UserError(f"{where}: {name} takes no argument {key!r}{suggest(key, usable)}")
    try:
        return known[name](**given)
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{where}: {name} cannot be made: {error}") from None


def _argument(key: str, value: object, where: str) -> object:
    """Turn what JSON can say into what torchvision takes."""
    from torchvision.transforms import InterpolationMode

    if key == "interpolation" and isinstance(value, str):
        modes = [mode.value for mode in InterpolationMode]
        if value not in modes:
            raise UserError(f"{where}: interpolation is {value!r}{suggest(value, modes)}")
        return InterpolationMode(value)
    if key == "dtype" and isinstance(value, str):
        dtype = getattr(torch, value, None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"{where}: dtype is {value!r}; as in 'float32' or 'uint8'")
        return dtype
    if key == "transforms" and isinstance(value, Mapping):
        return [make_transform(name, args, where) for name, args in value.items()]
    return value


def pipeline(spec: Values, where: str, size: int, decode: int | None) -> Recipe:
    """Make the recipe of one stage from `{name: arguments}` in order.

    A centre crop and a resize at its head are done when images are decoded. Where chance comes
    first, images are decoded whole to a square of `decode` pixels (see `_whole_side`).
    """
    if not isinstance(spec, Mapping):
        raise UserError(f"{where}: is {spec!r}; transforms stand in an object, by name")
    todo = [(name, args) for name, args in spec.items() if name not in NOTHING]
    geometry, used = _head(todo)
    if geometry is None:
        geometry = Geometry(decode or _whole_side(todo, size))
    steps: list[Step] = []
    normalised = scaled = False
    for name, args in todo[used:]:
        if name == "Normalize" and args is None:
            continue  # by the mean and standard deviation of the configuration, after the last step
        if name == "ToTensor":
            name, args = "ToDtype", {"dtype": "float32", "scale": True}
        transform = make_transform(name, args, where)
        if name == "RandomHorizontalFlip":
            steps.append(flip((args or {}).get("p", 0.5)))
        else:
            steps.append(each(transform, name))
        normalised |= name == "Normalize"
        if name in ("ToDtype", "ConvertImageDtype"):
            by_default = {"scale": name == "ConvertImageDtype", "dtype": "float32"}
            chosen = {**by_default, **(args or {})}
            scaled = bool(chosen["scale"]) and "float" in str(chosen["dtype"])
    if scaled and not normalised:
        steps.append(_times_255)
    return Recipe(geometry, _tested(steps, geometry, where), normalised=normalised)


def _whole_side(todo: list[tuple[str, Any]], size: int) -> int:
    """Return the side of the square that images are decoded to before the first transform.

    What cuts a part out is given half as much again as it returns, unless it adds a border itself;
    without such a transform images have the size that they keep.
    """
    for name, args in todo:
        if "Crop" in name or "Resize" in name:
            given = args if isinstance(args, Mapping) else {}
            wanted = given.get("size", size)
            sides = wanted if isinstance(wanted, (list, tuple)) else [wanted]
            side = max((side for side in sides if isinstance(side, int) and side > 0), default=size)
            return side if given.get("padding") else math.ceil(1.5 * side)
    return size


def _head(todo: list[tuple[str, Any]]) -> tuple[Geometry | None, int]:
    """Read a centre crop and a resize at the head of a pipeline; return how many were used."""

    def side(place: int, name: str) -> int | None:
        """Side of the square that transform `place` makes if it is `name`; 0 for no square."""
        if place >= len(todo) or todo[place][0] != name or set(todo[place][1] or ()) != {"size"}:
            return None
        size = todo[place][1]["size"]
        if isinstance(size, (list, tuple)):
            return int(size[0]) if len(size) == 2 and size[0] == size[1] else None
        return int(size) if name == "CenterCrop" else -int(size)  # Resize(n): the shorter side

    crop, resize = side(0, "CenterCrop"), side(1, "Resize")
    if crop and resize:
        # The crop is a square already unless the image is smaller, and becomes one either way.
        return Geometry(abs(resize), crop=crop), 2
    if crop:
        return Geometry(crop, crop=crop), 1
    resize, crop = side(0, "Resize"), side(1, "CenterCrop")
    if resize and resize > 0:
        return Geometry(resize), 1
    if resize and crop and crop <= -resize:
        return Geometry(crop, edge=-resize), 2
    return None, 0


def _times_255(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:  # noqa: ARG001
    """Bring what `ToDtype` has scaled to 0..1 back to 0..255, the scale of all steps."""
    return images * 255


def _tested(steps: list[Step], geometry: Geometry, where: str) -> tuple[Step, ...]:
    """Run the steps on two images, so that a pipeline that cannot work ends before training."""
    images = torch.zeros(2, 3, geometry.size, geometry.size, dtype=torch.uint8)
    try:
        for step in steps:
            images = step(images, np.random.default_rng(0))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{where}: does not work on an image: {str(error).splitlines()[0]}"
        ) from None
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        shape = list(images.shape[1:])
        raise UserError(f"{where}: makes images of shape {shape}; they must be [3, S, S]")
    return tuple(steps)


def output_size(recipe: Recipe) -> int:
    """Side of the images that a recipe makes, in pixels."""
    images = torch.zeros(1, 3, recipe.geometry.size, recipe.geometry.size, dtype=torch.uint8)
    for step in recipe.steps:
        images = step(images, np.random.default_rng(0))
    return images.shape[-1]
