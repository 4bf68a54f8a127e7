"""Augmentations: chance for every image, the field's meaning, and pipelines by name."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from ballot.data import augment
from ballot.data.images import Geometry
from ballot.errors import UserError

STEPS = {
    "flip": augment.flip(),
    "affine": augment.affine(),
    "crop": augment.crop(),
    "noise": augment.noise(),
    "blur": augment.blur(),
    "jitter": augment.jitter(0.3, 0.3, 0.3),
    "erase": augment.erase(1.0),
    "each": augment.each(v2.RandAugment()),
}


def images(count=8, size=24):
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 6), dtype=np.uint8))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def alike(count=8):
    return images(1).repeat(count, 1, 1, 1)


def run(step, batch, seed=0):
    return step(batch.clone(), np.random.default_rng(seed))


@pytest.mark.parametrize("name", STEPS)
def test_each_image_of_a_batch_has_chance_of_its_own(name):
    out = run(STEPS[name], alike(16)).float()
    assert out.shape == (16, 3, 24, 24)
    assert out.min() >= 0 and out.max() <= 255
    assert len({tuple(image.flatten().tolist()) for image in out}) > 1 + (name != "flip")


@pytest.mark.parametrize("name", STEPS)
def test_a_step_repeats_itself_and_leaves_global_chance_alone(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = run(STEPS[name], images()), run(STEPS[name], images())
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, run(STEPS[name], images(), seed=1))


def test_flip_mirrors_about_half():
    batch = images(400)
    out = run(augment.flip(), batch)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(out, batch)]
    same = [torch.equal(a, b) for a, b in zip(out, batch)]
    assert all(m or s for m, s in zip(mirrored, same))
    assert 150 < sum(mirrored) < 250


def test_affine_without_any_movement_changes_nothing():
    out = run(augment.affine(0, 0, (1, 1)), images())
    assert torch.allclose(out, images().float(), atol=1e-2)


def test_affine_turns_as_torchvision_does():
    batch = images(1, 41)
    step = augment.affine(30.0, 0, (1, 1))
    angle = np.random.default_rng(7).uniform(-30, 30)
    ours = run(step, batch, seed=7)
    theirs = TF.rotate(batch.float(), -angle, TF.InterpolationMode.BILINEAR)
    theirs_back = TF.rotate(batch.float(), angle, TF.InterpolationMode.BILINEAR)
    inside = (slice(None), slice(None), slice(12, 29), slice(12, 29))
    errors = [(ours - other)[inside].abs().mean() for other in (theirs, theirs_back)]
    assert min(errors) < 0.5


def test_a_crop_is_a_part_of_the_asked_area_and_shape_anywhere_in_the_image():
    across = torch.linspace(0, 255, 64).expand(64, 64)
    batch = torch.stack([across, across.T, across]).repeat(200, 1, 1, 1)
    out = run(augment.crop((0.2, 0.2), (0.5, 2.0)), batch)
    width, height = ((out[:, c].amax((1, 2)) - out[:, c].amin((1, 2))) / 255 for c in (0, 1))
    assert (width * height * 64 / 63 * 64 / 63).sub(0.2).abs().max() < 0.02  # edges of half a pixel
    assert 0.45 < (width / height).min() < 0.6 and 1.7 < (width / height).max() < 2.2
    middle = out[:, 0].mean((1, 2)) / 255
    assert middle.min() < 0.3 and middle.max() > 0.7


@pytest.mark.parametrize("area, ratio", [((0, 1), (1, 1)), ((0.5, 1.1), (1, 1)), ((1, 1), (0, 1))])
def test_an_impossible_crop_is_an_error(area, ratio):
    with pytest.raises(UserError, match=r"augmentation_args: (area|ratio) is"):
        augment.crop(area, ratio)


def test_blur_is_torchvisions_for_a_known_width():
    ours = run(augment.blur((1.0, 1.0)), images())
    theirs = TF.gaussian_blur(images().float(), [7, 7], [1.0, 1.0])
    assert (ours - theirs).abs().max() < 0.05


def test_noise_has_the_strength_that_was_asked_for():
    grey = torch.full((200, 3, 16, 16), 128, dtype=torch.uint8)
    spread = run(augment.noise(0.05), grey).sub(128).std((1, 2, 3)) / 255
    assert spread.max() < 0.055
    assert abs(spread.mean() - 0.025) < 0.005


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_jitter_changes_one_thing_as_torchvision_does(kind):
    factor = np.random.default_rng(2).uniform(0.5, 1.5, 1)[0]
    ours = run(augment.jitter(**{kind: 0.5}), images(1), seed=2)
    theirs = getattr(TF, f"adjust_{kind}")(images(1).float() / 255, factor) * 255
    assert (ours - theirs).abs().max() < 0.5


def test_erasing_covers_the_share_that_was_asked_for():
    batch = images(50, 40)
    covered = (run(augment.erase(1.0, (0.1, 0.2)), batch) != batch).any(1).float().mean((1, 2))
    assert covered.min() > 0.07 and covered.max() < 0.25


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_makes_targets_of_what_is_seen(kind):
    # Each image is its label's value everywhere, so that pixels tell the shares.
    targets = torch.arange(6)
    batch = (targets * 40).view(6, 1, 1, 1).expand(6, 3, 20, 20).to(torch.uint8).clone()
    mixed, soft = augment.mixing(6, **{kind: 1.0})(batch, targets, np.random.default_rng(1))
    assert soft.shape == (6, 6)
    assert torch.allclose(soft.sum(1), torch.ones(6))
    seen = mixed[:, 0].mean((1, 2)) / 40
    assert torch.allclose(seen, soft @ torch.arange(6.0), atol=1e-3)
    shares = soft.max(1).values
    assert len(set(shares.tolist())) > 2, "each image has a share of its own"


def test_both_mixings_share_the_images():
    batch, targets = images(200), torch.arange(200) % 5
    mixed, _ = augment.mixing(5, mixup=1.0, cutmix=1.0)(batch, targets, np.random.default_rng(0))
    whole = mixed.frac().abs().amax((1, 2, 3)) < 1e-4  # exchanged boxes keep bytes, blends do not
    assert 60 < whole.sum() < 140


def test_no_mixing_is_none_and_a_wrong_alpha_is_refused():
    assert augment.mixing(5) is None
    with pytest.raises(UserError, match=r"mixup is -1; it takes a number from 0 on"):
        augment.mixing(5, mixup=-1)


def make(spec, size=32, decode=None):
    return augment.pipeline(spec, "pipeline.train", size, decode)


@pytest.mark.parametrize(
    ("spec", "geometry"),
    [
        ({"CenterCrop": {"size": 350}, "Resize": {"size": [64, 64]}}, Geometry(64, crop=350)),
        ({"ToImage": None, "Resize": {"size": [64, 64]}}, Geometry(64)),
        ({"Resize": {"size": 72}, "CenterCrop": {"size": 64}}, Geometry(64, edge=72)),
        ({"RandomResizedCrop": {"size": 32}}, Geometry(48)),
        ({"Resize": {"size": [64, 64]}, "RandomCrop": {"size": 50}}, Geometry(64)),
    ],
)
def test_what_stands_before_chance_is_done_when_decoding(spec, geometry):
    assert make(spec).geometry == geometry


def test_decode_chooses_the_size_that_chance_cuts_from():
    assert make({"RandomResizedCrop": {"size": 32}}, decode=100).geometry == Geometry(100)


@pytest.mark.parametrize(
    "tail",
    [
        {"ToTensor": None},
        {"ToDtype": {"dtype": "float32", "scale": True}},
        {"ToDtype": {"dtype": "float32", "scale": False}},
        {"ToImage": None, "Normalize": None},
        {},
    ],
)
def test_a_pipeline_keeps_the_scale_of_pixels(tail):
    recipe = make({"Resize": {"size": [24, 24]}, **tail})
    out = images(2)
    for step in recipe.steps:
        out = step(out, np.random.default_rng(0))
    assert torch.allclose(out.float(), images(2).float(), atol=1e-3)
    assert not recipe.normalised


def test_a_pipelines_own_normalisation_is_the_last_word():
    spec = {
        "Resize": {"size": [24, 24]},
        "ToTensor": None,
        "Normalize": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    recipe = make(spec)
    out = images(2)
    for step in recipe.steps:
        out = step(out, np.random.default_rng(0))
    assert recipe.normalised
    assert torch.allclose(out, (images(2) / 255 - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"RandomHorizontlFlip": None}, "did you mean 'RandomHorizontalFlip'"),
        ({"RandomCrop": {"sise": 3}}, "takes no argument 'sise'; did you mean 'size'"),
        ({"RandomCrop": 3}, "arguments of RandomCrop are 3; they stand in an object"),
        ({"MixUp": None}, "use augmentation_args.mixup"),
        ({"Lambda": None}, "plugin"),
        ({"__import__": None}, "torchvision has no transform"),
        ({"RandomCrop": {"size": [20, 10]}}, r"images of shape \[3, 20, 10\]"),
        ({"ToDtype": {"dtype": "load"}}, "dtype is 'load'"),
        ({"Resize": {"size": 9, "interpolation": "best"}}, "interpolation is 'best'"),
        ({"RandomRotation": None}, "RandomRotation cannot be made"),
        ({"Normalize": {"mean": [0.5], "std": [0.5]}}, "does not work on an image"),
        (["RandomCrop"], "transforms stand in an object"),
    ],
)
def test_a_wrong_pipeline_is_refused_before_training(spec, message):
    with pytest.raises(UserError, match=message):
        make(spec)


def test_nested_transforms_are_made_by_name_too():
    spec = {
        "Resize": {"size": [24, 24]},
        "RandomApply": {"transforms": {"GaussianBlur": {"kernel_size": 3}}, "p": 1.0},
    }
    out = run(make(spec).steps[0], images(2))
    assert not torch.equal(out, images(2))
