"""A run and a written vote on images: the same answers as they gave themselves, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from trained_for_tests import COLOURS, coloured, copy_run, run

import predict
from ballot.data.images import Geometry, decode_file
from ballot.errors import UserError
from ballot.prediction import tta
from ballot.prediction.checkpoints import answering_checkpoints, read_checkpoint
from ballot.prediction.predictor import decoded
from ballot.training import tensor_files
from ballot.vote.options import VoteOptions
from ballot.vote.run import run_vote

SMALL = ("--epochs", 1, "--image_size", 16)


class Trained:
    """Three runs that see the same images in their own ways: another size, crop, folds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = coloured(folder / "data", {"train": 12, "val": 8, "test": 4})
        self.one = run(folder, self.data, "one", *SMALL)
        self.words_of_two = [
            "--epochs",
            1,
            "--image_size",
            24,
            "--seed",
            7,
            "--channels_last",
            "--augmentation_args.crop",
            32,
            "--pretrained",
            "no",
        ]
        self.two = run(folder, self.data, "two", *self.words_of_two, "--tta", "hflip,vflip,crops")
        self.folds = run(folder, self.data, "folds", *SMALL, "--folds", 2)
        self.csvs = sorted((folder / "outputs").glob("*.csv"))

    def rows(self, run: Path) -> tuple[pd.DataFrame, Path]:
        """A run's validation answers, and a CSV that asks for them again in another order."""
        val = pd.read_csv(run / "val.csv", dtype={"id": str}).sample(frac=1, random_state=0)
        asked = self.folder / f"ask-{run.name}.csv"
        pd.DataFrame({"id": [f"row {k}" for k in range(len(val))], "path": val["id"]}).to_csv(
            asked, index=False
        )
        return val, asked


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ask(*words: object, status: int = 0) -> pd.DataFrame:
    """Predict into a CSV and read it."""
    assert predict.main([*map(str, words), "--out", "out.csv", "--device", "cpu"]) == status
    return pd.read_csv("out.csv", dtype={"id": str})


def probs(table: pd.DataFrame, classes: object = ("blue", "green", "red")) -> np.ndarray:
    return table[list(classes)].to_numpy()


# The same answers


@pytest.mark.parametrize("name", ["one", "two"])
def test_validation_images_get_the_answers_of_val_csv(trained, name):
    val, asked = trained.rows(getattr(trained, name))
    found = ask(getattr(trained, name), asked, "--root", trained.data, "--batch_size", 7)
    assert found["id"].tolist() == [f"row {k}" for k in range(len(val))]
    np.testing.assert_allclose(probs(found), probs(val), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["one", "folds"])
def test_test_images_get_the_answers_of_the_ballot_also_from_several_folds(trained, name):
    run = getattr(trained, name)
    own = pd.read_csv(run.with_suffix(".csv"))
    found = ask(run, trained.data / "test")
    assert ("test/" + found["id"]).tolist() == own["id"].tolist()
    assert list(found.columns) == list(own.columns)
    np.testing.assert_allclose(probs(found), probs(own), atol=1e-6, rtol=0)


def test_one_checkpoint_answers_alone(trained):
    first, second = (trained.folds / f"fold{k}" / "best.pt" for k in range(2))
    both = (probs(ask(first, trained.data / "test")), probs(ask(second, trained.data / "test")))
    whole = ask(trained.folds, trained.data / "test")
    np.testing.assert_allclose(np.mean(both, axis=0), probs(whole), atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "geometric", "calibrate": True},
        {"method": "rank", "weights": [2, 1, 0]},
        {"select": "greedy"},
        {"stack": "logistic"},
    ],
)
def test_a_written_vote_gives_its_soft_csv_again(trained, options):
    report = run_vote(trained.csvs, VoteOptions(**options))
    soft = pd.read_csv("ensemble/soft.csv")
    found = ask("ensemble", trained.data / "test")
    assert ("test/" + found["id"]).tolist() == soft["id"].tolist()
    assert len(report.members) == 3
    np.testing.assert_allclose(probs(found), probs(soft), atol=1e-6, rtol=0)


def test_a_vote_of_validation_rows_answers_test_images_as_the_ballots_do(trained):
    folders = [csv.with_suffix("") for csv in trained.csvs]
    run_vote([run / "val.csv" for run in folders], VoteOptions(weights=[3, 1, 0]))
    assert not Path("ensemble/soft.csv").exists()
    found = ask("ensemble", trained.data / "test")
    run_vote(trained.csvs, VoteOptions(weights=[3, 1, 0], out_dir="with_test"))
    soft = pd.read_csv("with_test/soft.csv")
    np.testing.assert_allclose(probs(found), probs(soft), atol=1e-6, rtol=0)


def test_folds_and_seeds_that_were_joined_are_joined_again(trained):
    twin = copy_run(trained.one, "one_seed7")
    try:
        csvs = [
            trained.one.with_suffix(".csv"),
            twin.with_suffix(".csv"),
            trained.two.with_suffix(".csv"),
        ]
        report = run_vote(csvs, VoteOptions(group_folds=True))
        assert len(report.members) == 2
        found = ask("ensemble/ensemble.json", trained.data / "test")
        np.testing.assert_allclose(probs(found), probs(pd.read_csv("ensemble/soft.csv")), atol=1e-6)
    finally:
        shutil.rmtree(twin)
        twin.with_suffix(".csv").unlink()


def test_a_run_remembers_its_pipeline_and_its_averaged_weights(trained, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps(
            {
                "pipeline": {
                    "train": {
                        "Resize": {"size": [20, 20]},
                        "RandomHorizontalFlip": None,
                        "CenterCrop": {"size": 16},
                    },
                    "val": {
                        "Resize": {"size": [20, 20]},
                        "CenterCrop": {"size": 16},
                        "Grayscale": {"num_output_channels": 3},
                        "Normalize": None,
                    },
                }
            }
        )
    )
    made = run(tmp_path, trained.data, "piped", "--config", config, "--epochs", 1, "--ema", 0.5)
    own = pd.read_csv(made.with_suffix(".csv"))
    found = ask(made, trained.data / "test")
    np.testing.assert_allclose(probs(found), probs(own), atol=1e-6, rtol=0)


# What is asked


def test_the_likeliest_classes_are_printed_and_nothing_else(trained, capsys):
    image = trained.data / "test" / "red" / "red-1.png"
    assert predict.main([str(trained.one), str(image), "--top", "2", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    name, first, p, second, q = out.strip().split("\t")
    own = ask(trained.one, image)
    best = own[["blue", "green", "red"]].iloc[0].sort_values(ascending=False)
    assert (name, [first, second]) == ("red-1.png", best.index[:2].tolist())
    assert [float(p), float(q)] == pytest.approx(best.tolist()[:2], abs=5e-5)
    assert "1 image by 1 network in" in err and "images/s" in err


def test_names_that_are_alike_are_told_apart_by_their_folders(trained, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(trained.data / "test" / "red" / "red-0.png", tmp_path / name / "x.png")
    assert ask(trained.one, "a/x.png", "b/x.png")["id"].tolist() == ["a/x.png", "b/x.png"]
    assert ask(trained.one, "a/x.png")["id"].tolist() == ["x.png"]
    assert ask(trained.one, tmp_path)["id"].tolist() == ["a/x.png", "b/x.png"]


def test_mirrored_views_are_averaged(trained, tmp_path):
    names = [f"{c}-{k}.png" for c in ("red", "blue") for k in range(4)]
    for side in ("plain", "mirror"):
        (tmp_path / side).mkdir()
    for name in names:
        image = Image.open(trained.data / "test" / name.partition("-")[0] / name)
        image.save(tmp_path / "plain" / name)
        ImageOps.mirror(image).save(tmp_path / "mirror" / name)
    plain, mirror = (probs(ask(trained.one, tmp_path / side)) for side in ("plain", "mirror"))
    found = probs(ask(trained.one, tmp_path / "plain", "--tta", "hflip"))
    np.testing.assert_allclose(found, (plain + mirror) / 2, atol=0.003)  # resized, then mirrored
    assert np.abs(plain - mirror).max() > 1e-4


def test_views_are_taken_where_the_validation_loss_gets_better(trained):
    taken = set()
    for each in (trained.one, trained.two):
        told, (val, _) = json.loads((each / "result.json").read_text())["tta"], trained.rows(each)
        true = probs(val)[np.arange(len(val)), [sorted(COLOURS).index(name) for name in val.label]]
        assert told["val_nll"] == pytest.approx(-np.log(true).mean(), abs=1e-4)
        assert bool(told["views"]) == (told["val_nll"] < told["val_nll_plain"])
        assert read_checkpoint(each / "best.pt").tta == tuple(told["views"])
        taken.update(told["views"])
    assert taken, "no run shows that predict.py does the same"


def test_a_run_without_views_answers_as_the_image_alone_is_seen(trained, tmp_path):
    again = run(tmp_path, trained.data, "off", *trained.words_of_two, "--tta", "off")
    with_views = ask(trained.two, trained.data / "test")
    without = ask(trained.two, trained.data / "test", "--tta", "off")
    own = pd.read_csv(again.with_suffix(".csv"))
    np.testing.assert_allclose(probs(without), probs(own), atol=1e-6)
    assert np.abs(probs(with_views) - probs(without)).max() > 1e-5


def test_a_view_is_chosen_by_validation_one_after_the_other():
    targets = np.array([0, 1])
    sure = {"": 0.6, "hflip": 0.8, "hflip,crops": 0.7, "hflip,vflip": 0.9}

    def predict(names):
        return np.array([[p, 1 - p], [1 - p, p]]) if (p := sure[",".join(names)]) else None

    chosen = tta.choose(["hflip", "crops", "vflip"], predict([]), targets, predict)
    assert chosen.names == ["hflip", "vflip"]
    assert chosen.val_nll == pytest.approx(-np.log(0.9))
    assert chosen.val_nll_plain == pytest.approx(-np.log(0.6))


def test_a_view_that_costs_right_answers_is_not_taken_for_its_log_loss():
    targets = np.zeros(100, int)
    sure, unsure = np.array([[0.999, 0.001]] * 60), np.array([[0.001, 0.999]] * 40)
    plain, mirrored = np.concatenate([sure, unsure]), np.tile([0.45, 0.55], (100, 1))
    chosen = tta.choose(["hflip"], plain, targets, lambda _: mirrored)
    assert chosen.names == [] and chosen.probs is plain
    few = np.concatenate([plain[:59], np.tile([0.45, 0.55], (41, 1))])  # one answer less is chance
    assert tta.choose(["hflip"], plain, targets, lambda _: few).names == ["hflip"]


def test_views_are_the_image_and_each_change_of_it():
    images = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(torch.uint8)
    assert len(tta.views(images, [])) == 1
    assert len(tta.views(images, ["hflip", "crops"])) == 12
    plain, mirrored = tta.views(images, ["hflip"])
    assert torch.equal(plain, images) and torch.equal(mirrored, images.flip(3))
    assert torch.equal(tta.views(images, ["vflip"])[1], images.flip(2))
    flat = torch.full((1, 3, 16, 16), 7, dtype=torch.uint8)
    assert all((view == 7).all() and view.shape == flat.shape for view in tta.crops(flat))
    corner = torch.zeros(1, 3, 16, 16)
    corner[..., 0, 0] = 1
    assert [bool(view.any()) for view in tta.crops(corner)] == [False, True, False, False, False]


def test_each_file_is_shown_in_every_size_that_the_members_want(trained):
    paths = sorted((trained.data / "test").rglob("*.png"))
    shapes = [Geometry(16), Geometry(24, crop=20)]
    batches = list(decoded(lambda row: decode_file(paths[row]), len(paths), shapes, 5, 2))
    assert [rows for rows, _, _ in batches] == [list(range(k, min(k + 5, 12))) for k in (0, 5, 10)]
    for shape in shapes:
        found = torch.cat([images[shape] for _, images, _ in batches])
        expected = torch.stack([shape.fit(decode_file(path)) for path in paths])
        assert torch.equal(found, expected)


# What is not there


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_answered(
    trained, tmp_path, capsys
):
    shutil.copytree(trained.data / "test" / "red", tmp_path / "images")
    (tmp_path / "images" / "red-1.png").write_bytes(b"no image")
    found = ask(trained.one, tmp_path / "images", "--batch_size", 2, status=1)
    assert found["id"].tolist() == ["red-0.png", "red-2.png", "red-3.png"]
    said = capsys.readouterr().err
    assert "red-1.png is no image of a known format" in said
    assert "1 of 4 images could not be read: 'red-1.png'" in said
    whole = ask(trained.one, trained.data / "test" / "red").drop(1).reset_index(drop=True)
    np.testing.assert_allclose(probs(found), probs(whole), atol=1e-6)


def test_members_without_checkpoints_are_named_or_left_out_on_demand(trained, tmp_path, capsys):
    shutil.copytree(trained.folder / "outputs", tmp_path / "outputs")
    csvs = sorted((tmp_path / "outputs").glob("*.csv"))
    run_vote(csvs, VoteOptions(weights=[1, 2, 3]))  # folds, one, two
    (tmp_path / "outputs" / "two" / "best.pt").unlink()
    words = ["ensemble", str(trained.data / "test"), "--out", "out.csv"]
    assert predict.main(words) == 2
    said = capsys.readouterr().err
    assert "1 of 3 members have no best.pt beside their CSV: 'two'" in said
    assert "--allow_missing" in said and not Path("out.csv").exists()
    found = ask("ensemble", trained.data / "test", "--allow_missing")
    assert "left out, without checkpoints: 'two'" in capsys.readouterr().err
    folds, one = (pd.read_csv(tmp_path / "outputs" / f"{n}.csv") for n in ("folds", "one"))
    np.testing.assert_allclose(probs(found), (probs(folds) + 2 * probs(one)) / 3, atol=1e-6)
    run_vote(csvs, VoteOptions(stack="logistic"))
    assert predict.main([*words, "--allow_missing"]) == 2
    assert "a stacked vote needs all of them" in capsys.readouterr().err


def test_a_fold_that_is_gone_is_missed(trained, tmp_path):
    run = shutil.copytree(trained.folds, tmp_path / "folds")
    (run / "fold1" / "best.pt").unlink()
    assert answering_checkpoints(run)[1].startswith("1 of 2 folds have a best.pt")


def other_checkpoint(trained, tmp_path, **changes) -> Path:
    """The first run's checkpoint, saying something else of itself."""
    saved = tensor_files.load_tensors(trained.one / "best.pt")
    about = json.loads(saved["about"])
    about["config"].update(changes.pop("config", {}))
    about.update(changes)
    path = tmp_path / "other.pt"
    tensor_files.save_tensors(path, {**saved, "about": json.dumps(about)})
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config": {"model": "AlexNet"}}, "image"),
        ({"config": {"model_args": {"widths": [1]}}}, "takes no argument 'widths'"),
        ({"config": {"from_the_future": 1}}, "unknown option 'from_the_future'"),
        ({"config": {"model": "my_net", "plugins": ["evil.py"]}}, "had --plugins evil.py"),
        ({"classes": ["blue", "green"]}, "its weights are not those of model 'simple_cnn'"),
        ({"classes": ["blue"]}, "says 1 classes"),
        ({"mean": [0.5]}, "which no model of train.py has"),
        ({"mean": "x"}, "is damaged"),
        ({"mean": [0.5, float("nan"), 0.5]}, "which no model of train.py has"),
        ({"std": [0.5, 0.5, float("inf")]}, "which no model of train.py has"),
        ({"config": None}, "is damaged"),
    ],
)
def test_a_foreign_or_older_checkpoint_is_one_line(trained, tmp_path, capsys, changes, message):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    if changes.get("config", 0) is None:
        path = tmp_path / "other.pt"
        tensor_files.save_tensors(path, {"model": {}, "about": "{}"})
    else:
        path = other_checkpoint(trained, tmp_path, **changes)
    assert predict.main([str(path), str(trained.data / "test"), "--out", "out.csv"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1 and str(path) in said
    assert not Path("out.csv").exists()


def with_weight(run: Path, number: float) -> Path:
    """Put a number that is not finite among the weights of a run."""
    saved = tensor_files.load_tensors(run / "best.pt")
    name = next(name for name, values in saved["model"].items() if values.ndim > 1)
    saved["model"][name][0] = number
    tensor_files.save_tensors(run / "best.pt", saved)
    return run


@pytest.mark.parametrize("number, named", [(float("nan"), "best.pt"), (float("inf"), ".png")])
@pytest.mark.parametrize("method", [None, "mean", "hard", "rank"])
def test_answers_that_are_not_finite_are_refused(trained, tmp_path, capsys, number, named, method):
    outputs = shutil.copytree(trained.folder / "outputs", tmp_path / "outputs")
    asked = with_weight(outputs / "one", number)
    if method:
        run_vote(sorted(outputs.glob("*.csv")), VoteOptions(method=method))
        asked = Path("ensemble")
    words = [str(asked), str(trained.data / "test"), "--device", "cpu", "--out", "out.csv"]
    assert predict.main(words) == 2
    said = capsys.readouterr().err
    assert named in said and "not finite" in said and len(said.strip().splitlines()) == 1
    assert not Path("out.csv").exists()


@pytest.mark.parametrize("key", ["raw_weight", "temperature"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_a_vote_with_an_impossible_number_is_damaged(trained, capsys, key, number):
    run_vote(trained.csvs, VoteOptions(calibrate=True))
    record = json.loads(Path("ensemble/ensemble.json").read_text())
    record["members"][0][key] = number
    Path("ensemble/ensemble.json").write_text(json.dumps(record))
    assert predict.main(["ensemble", str(trained.data / "test"), "--out", "out.csv"]) == 2
    said = capsys.readouterr().err
    assert "ensemble.json: is damaged" in said and len(said.strip().splitlines()) == 1
    assert not Path("out.csv").exists()


BAD = [
    (["nowhere", "x.png"], "x.png: is not there"),
    (["{one}"], "what is to be predicted"),
    (["{one}.csv", "{test}"], "is a table; give the run's folder"),
    (["{test}", "{test}"], "holds no best.pt"),
    (["foreign.pt", "{test}"], "is no best.pt of train.py"),
    (["text.pt", "{test}"], "is no checkpoint that can be read"),
    (["{one}", "empty"], "there are no images"),
    (["{one}", "words.csv"], "has no column of paths"),
    (["{one}", "{test}", "{test}"], "stands there twice"),
    (["{one}", "text.pt"], "is no image by its name"),
    (["{one}", "broken"], "none of 1 images can be read"),
    (["{one}", "{test}", "--tta", "hflop"], "unknown 'hflop'; did you mean 'hflip'?"),
    (["{one}", "{test}", "--tta", "hflip,hflip"], "stands there twice"),
    (["{one}", "{test}", "--top", "0"], "'0' is no whole number from 1 on"),
    (["{one}", "{test}", "--device", "cuda:99"], "is not to be had here"),
    (["{one}", "{test}", "--batch", "3"], "unknown flag '--batch'; did you mean '--batch_size'?"),
    (["damaged", "{test}"], "is damaged"),
]


@pytest.mark.parametrize("words, message", BAD)
def test_bad_input_is_one_line_and_status_2(trained, tmp_path, capsys, words, message):
    for folder in ("empty", "broken", "damaged"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"")
    (tmp_path / "damaged" / "ensemble.json").write_text('{"classes": ["a"]}')
    torch.save({"state_dict": {"w": torch.zeros(1)}}, "foreign.pt")
    Path("text.pt").write_text("hello")
    Path("words.csv").write_text("a,b\n1,2\n")
    places = {"one": trained.one, "test": trained.data / "test"}
    words = [word.format(**places) for word in words]
    assert predict.main([*words, "--out", "out.csv"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and not Path("out.csv").exists()
    assert all(not line.startswith("Traceback") for line in lines)


def test_a_checkpoint_says_what_its_run_was(trained):
    saved = read_checkpoint(trained.two / "best.pt")
    assert (saved.config.model, saved.image_size, saved.classes) == (
        "simple_cnn",
        24,
        ["blue", "green", "red"],
    )
    assert saved.start and saved.start != read_checkpoint(trained.one / "best.pt").start
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(trained.two / "worst.pt")


# As a user types it


@pytest.mark.slow
def test_digits_as_files_get_the_answers_that_their_run_gave(script, tmp_path):
    from sklearn.datasets import load_digits

    assert script("train.py", "--epochs", 1, "--run_name", "digits").returncode == 0
    own = pd.read_csv(tmp_path / "outputs" / "digits.csv", index_col="id")
    (tmp_path / "images").mkdir()
    for name in own.index:
        pixels = load_digits().images[int(name.removeprefix("digit-"))] * (255 / 16)
        image = Image.fromarray(pixels.round().astype(np.uint8))
        image.save(tmp_path / "images" / f"{name}.png")
    done = script("predict.py", "outputs/digits", "images", "--out", "new.csv")
    assert done.returncode == 0, done.stderr
    assert f"{len(own)} images by 1 network" in done.stderr and done.stdout == ""
    found = pd.read_csv(tmp_path / "new.csv", index_col="id")
    found.index = found.index.str.removesuffix(".png")
    np.testing.assert_allclose(found.loc[own.index], own, atol=1e-6)
