"""Recipes: what the data and the machine decide where nobody says otherwise."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from images_for_tests import class_folders
from PIL import Image

from ballot.config.files import read_config_files
from ballot.config.layers import merge
from ballot.config.schema import FIELDS, Config
from ballot.data.survey import Survey, survey
from ballot.errors import UserError
from ballot.training.recipes import Situation, choose, read_recipes, with_recipe
from ballot.values import Layer
from dataset import find_table

LITE0 = "timm:tf_efficientnet_lite0"


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos", {"cat": 12, "dog": 4})


def decide(values, **given):
    layers, line = with_recipe([Layer("command line", values)], **given)
    return *merge(layers), line


def test_photos_are_fine_tuned_and_the_line_says_how(photos):
    config, origin, line = decide({"data_dir": str(photos)})
    assert (config.model, origin["model"]) == (LITE0, "recipe")
    assert line.startswith("photos, 2 classes, 16 images, ")
    assert f"tf_efficientnet_lite0 pretrained at {config.image_size} px, " in line
    assert line.endswith("; --recipe none for plain defaults")


@pytest.mark.parametrize(
    "images, side, expected",
    [
        (374, 384, (224, 8, "6")),
        (374, 64, (128, 20, "0")),
        (800, 64, (128, 12, "0")),
        (1200, 64, (128, 8, "6")),
        (1200, 384, (128, 8, "6")),
    ],
)
def test_small_photos_are_enlarged_less_and_trained_for_longer(images, side, expected):
    data = Survey(images=images, classes=6, side=side, grey=False)
    now = Situation(data, "auto", None, pretrained=True, device="cpu", cores=2)
    values = choose(now, read_recipes())
    assert (values["image_size"], values["epochs"], values["freeze"]) == expected


def test_without_photos_nothing_is_decided(tmp_path):
    assert decide({})[0] == Config()
    grey = tmp_path / "grey"
    for name in ("0", "1"):
        (grey / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (28, 28), 40 * k).save(grey / name / f"{k}.png")
    config, _, line = decide({"data_dir": str(grey)})
    assert config == Config(data_dir=str(grey)) and line == ""


def test_none_is_the_plain_defaults(photos):
    values = {"data_dir": str(photos), "recipe": "none"}
    assert decide(values)[0] == Config(**values)


def test_three_folders_given_apart_are_looked_at_as_one_is(tmp_path):
    train = class_folders(tmp_path / "all", {"cat": 12, "dog": 4})
    _, origin, line = decide({"train_dir": str(train), "val_dir": str(train)})
    assert origin["model"] == "recipe" and line.startswith("photos, 2 classes, 16 images, ")


def test_a_project_of_another_template_is_complete_and_gets_no_recipe(photos, tmp_path):
    arch = {"arch": {"type": "LeNet"}, "data_loader": {"args": {"data_dir": str(photos)}}}
    (tmp_path / "config.json").write_text(json.dumps(arch))
    layers = read_config_files([tmp_path / "config.json"])
    assert with_recipe(layers) == (layers, "")
    asked, said = with_recipe([*layers, Layer("command line", {"recipe": "auto"})])
    config, origin = merge(asked)  # where one is asked for, it sets what the file leaves open
    assert said.startswith("photos") and config.augmentation == "TrivialAugment"
    assert (config.model, origin["augmentation"]) == ("simple_cnn", "recipe")
    config, _ = merge(layers)  # and what --print_config writes of it
    assert config.recipe == "none" and with_recipe([Layer("new.json", asdict(config))])[1] == ""


def test_what_is_named_is_kept_and_the_rest_suits_it(photos):
    values = {"data_dir": str(photos), "model": "simple_cnn", "criterion": "focal", "lr": 0.5}
    config, origin, line = decide(values)
    assert (config.model, config.criterion, config.lr) == ("simple_cnn", "focal", 0.5)
    assert config.criterion_args == {} and config.scheduler == "cosine"
    assert config.image_size is None and "from scratch" in line
    assert (origin["lr"], origin["epochs"]) == ("command line", "recipe")


def test_a_short_trial_has_a_short_warm_up(photos):
    config, _, _ = decide({"data_dir": str(photos), "epochs": 2})
    assert config.warmup_epochs == pytest.approx(0.4)


def test_a_pipeline_keeps_its_own_size(photos):
    spec = {"train": {"Resize": {"size": [32, 32]}}}
    config, _, _ = decide({"data_dir": str(photos), "pipeline": spec})
    assert config.image_size is None and config.augmentation == "BaseAugmentation"


def test_a_run_that_goes_on_keeps_its_recipe(photos, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"values": {"epochs": 7, "lr": 2, "criterion_args": {"gamma": 1}}, '
        '"origin": {"epochs": "recipe", "lr": "tuner", "criterion_args.gamma": "recipe"}}'
    )
    config, origin, _ = decide({"data_dir": str(photos)}, saved=tmp_path)
    assert (config.epochs, config.lr, config.model) == (7, 0.001, "simple_cnn")
    assert config.criterion_args == {"gamma": 1} and origin["epochs"] == "recipe"


def test_a_tuner_lies_over_the_recipe(photos):
    layers, _ = with_recipe(
        [Layer("command line", {"data_dir": str(photos)}), Layer("tuner", {"lr": 0.3})]
    )
    config, origin = merge(layers)
    assert (config.lr, origin["lr"], config.model) == (0.3, "tuner", LITE0)


def test_a_tuner_decides_without_torch_what_its_trials_do(photos):
    code = (
        "import sys; from ballot.engines.nni.dispatcher import config_of; "
        f"c = config_of({{'trialCommand': 'python3 train.py --data_dir {photos.name}', "
        f"'trialCodeDirectory': '{photos.parent}'}}); print(c.model, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    for name in ("train.py", "ballot"):
        (photos.parent / name).symlink_to(root / name)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == [LITE0, "False"], done.stderr


@pytest.mark.parametrize("layout", ["folders", "sides", "csv", "mask"])
def test_a_survey_counts_what_the_layout_reads(layout, tmp_path):
    root = tmp_path / layout
    if layout == "folders":
        class_folders(root, {"a": 3, "b": 6})
    elif layout == "sides":
        for side, count in (("train", 3), ("test", 2)):
            class_folders(root / side, {"a": count, "b": 2 * count})
    elif layout == "csv":
        class_folders(root / "all", {"a": 3, "b": 6})
        paths = sorted(path.relative_to(root) for path in root.rglob("*.*"))
        rows = [f"{p},{p.parent.name},{'test' if k == 0 else 'train'}" for k, p in enumerate(paths)]
        (root / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    else:
        for person in ("1_male_x_20", "2_female_x_40"):
            folder = root / "train" / "images" / person
            folder.mkdir(parents=True)
            for name in ("mask1", "normal"):
                Image.new("RGB", (20, 30)).save(folder / f"{name}.jpg")
    config = Config(data_dir=str(root))
    seen, table = survey(config, Path()), find_table(config)
    assert seen.images == len(table.rows_of("train", "val"))
    assert seen.classes == len(table.classes)


def test_the_recipes_hold_known_conditions_and_options():
    layers = [Layer("recipe", line["values"]) for line in read_recipes()]
    assert layers and all(merge([layer]) for layer in layers)
    assert "recipe" in FIELDS


def test_an_unknown_condition_is_named(tmp_path):
    (tmp_path / "mine.yml").write_text("- {when: {colour: red}, values: {lr: 1}}")
    with pytest.raises(UserError, match=r"unknown condition 'colour'; use .*chosen, model"):
        read_recipes(tmp_path / "mine.yml")


def test_later_lines_win():
    lines = [{"values": {"lr": 1, "epochs": 2}}, {"values": {"lr": 3}}]
    assert choose(None, lines) == {"lr": 3, "epochs": 2}
