"""The same picture in other clothes is found and kept on one side; other pictures are not."""

import numpy as np
import pytest
from images_for_tests import SHARED
from PIL import Image

from ballot.config.schema import Config
from ballot.data.images import decode_file
from ballot.data.near_duplicates import NONE, find_families, thumbnail
from ballot.errors import UserError
from dataset import find_table, load_data, main


def scene(seed, size=(192, 144)):
    """Make a picture with structure of every size, as photos have it (amplitudes fall as 1/f)."""
    rng = np.random.default_rng(seed)
    wide, high = size
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.fftfreq(wide))
    spectrum = np.fft.fft2(rng.normal(size=(3, high, wide))) / np.maximum(frequency, 1 / wide)
    image = np.fft.ifft2(spectrum).real
    image = 128 + 50 * image / image.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def cropped(image, share=0.03):
    wide, high = image.size
    return image.crop((round(wide * share), 0, wide, round(high * (1 - share))))


CLOTHES = {
    "re-encoded": lambda image: image,
    "resized": lambda image: image.resize((96, 72)),
    "stretched": lambda image: image.resize((112, 112)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside-down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "cropped": cropped,
    "all": lambda image: cropped(CLOTHES["mirrored"](image).resize((256, 192))),
}


def save(image, path, quality=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)


@pytest.fixture
def root(tmp_path):
    """Two classes of distinct scenes, and test scenes."""
    for seed in range(40):
        side = "test" if seed % 5 == 4 else "train"
        save(scene(seed), tmp_path / side / "ab"[seed % 2] / f"{seed}.jpg", 95)
    return tmp_path


def load(root, **options):
    options = {"cache": "off", "image_size": 16, **options}
    return load_data(Config(data_dir=str(root), **options))


@pytest.mark.parametrize("change", CLOTHES)
def test_a_copy_in_the_test_set_is_named_beside_its_origin(change, root, capsys):
    save(CLOTHES[change](scene(0)), root / "test" / "a" / "x.jpg")
    assert main(["--data_dir", str(root), "--cache", "off", "--image_size", "16"]) == 0
    assert (
        "warning: near duplicates on both sides of the split (1 group): "
        "(train/a/0.jpg in train, test/a/x.jpg in test)\n"
    ) in capsys.readouterr().out
    with pytest.raises(UserError, match="an error because of strict"):
        load(root, strict=True)


def test_distinct_images_are_no_near_duplicates(root, caplog):
    load(root)
    assert "near duplicates" not in caplog.text


def test_copies_stay_on_one_side_of_a_split_of_ours(root, caplog):
    for number, change in enumerate(CLOTHES.values()):
        save(change(scene(10 * number)), root / "train" / "a" / f"x{number}.jpg")
    pairs = [
        {f"train/a/{10 * n}.jpg", f"train/a/x{n}.jpg"} for n in range(4)
    ]  # the others' origins stand in the test folder
    parted = 0
    for seed in range(6):
        (fold,) = load(root, seed=seed).folds
        assert all(pair <= set(fold.train.ids) or pair <= set(fold.val.ids) for pair in pairs)
        (fold,) = load(root, seed=seed, near_duplicates="ignore").folds
        parted += sum(
            bool(pair & set(fold.train.ids) and pair & set(fold.val.ids)) for pair in pairs
        )
    assert parted > 0, "without it, some would be parted"
    assert "near duplicates, which stay on one side (4 groups)" in caplog.text


def test_the_cache_remembers_them(root, tmp_path):
    save(CLOTHES["mirrored"](scene(0)), root / "train" / "a" / "x.jpg")
    for _ in range(2):  # built, then read
        (fold,) = load(root, cache=str(tmp_path / "cache")).folds
        (other,) = load(root).folds
        assert fold.val.ids == other.val.ids


def test_other_labels_are_told(root, caplog):
    save(CLOTHES["all"](scene(0)), root / "train" / "b" / "x.jpg")
    load(root)
    assert "near duplicates with labels that differ (1 group)" in caplog.text
    assert "train/a/0.jpg is a, train/b/x.jpg is b" in caplog.text


def test_more_than_any_split_could_keep_together_are_given_up_and_told(root, caplog):
    for number in range(40):
        copy = scene(0).rotate(number / 100)  # frames of a film
        save(copy, root / "train" / "ab"[number % 2] / f"x{number}.jpg", 60 + number % 30)
    (fold,) = load(root).folds
    assert len(fold.val) == pytest.approx(72 / 5, abs=2)
    assert "of 72 images are near duplicates of each other, too many" in caplog.text


def test_plain_and_tiny_pictures_are_not_judged():
    rng = np.random.default_rng(0)
    plain = np.stack([np.full((32, 32), grey, np.uint8) for grey in rng.integers(0, 255, 20)])
    faint = (plain + rng.integers(0, 2, plain.shape)).astype(np.uint8)
    digests = [b"%d" % k for k in range(40)]
    assert (find_families(np.concatenate([plain, faint]), digests) == NONE).all()
    import torch

    assert not thumbnail(torch.full((3, 31, 80), 9, dtype=torch.uint8)).any()


def test_the_order_of_the_rows_decides_nothing():
    rng = np.random.default_rng(0)
    grey = [np.asarray(scene(seed // 2, (32, 32)).convert("L")) for seed in range(60)]
    thumbs = np.stack([image[:, :: 1 - 2 * (n % 2)] for n, image in enumerate(grey)])
    digests = [b"%d" % n for n in range(60)]
    order = rng.permutation(60)
    found = find_families(thumbs, digests)
    other = find_families(thumbs[order], [digests[n] for n in order])
    assert (found[::2] == found[1::2]).all() and len(set(found.tolist())) == 30
    back = np.argsort(order)
    assert (other[back][::2] == other[back][1::2]).all() and len(set(other.tolist())) == 30


@pytest.mark.skipif(not (SHARED / "trashnet").is_dir(), reason="the real images are not here")
def test_real_photos_of_alike_objects_are_not_taken_for_one_another():
    """Two photos of the set are the same one in other clothes, as a person sees; no others are."""
    source = find_table(Config(data_dir=str(SHARED / "trashnet"))).source
    rows = [n for n in range(len(source)) if "/paper/" in source.name(n) or n % 3 == 0]
    thumbs = np.stack([thumbnail(decode_file(source.root / source.paths[n])) for n in rows])
    families = find_families(thumbs, [b"%d" % n for n in rows])
    assert {source.name(rows[k]) for k in np.flatnonzero(families != NONE)} == {
        "train/paper/paper345.jpg",
        "train/paper/paper451.jpg",
    }
