"""Projects of three templates as people bring them: read, trained, resumed, asked for answers."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import searches_for_tests
import sklearn.metrics
import torch
from images_for_tests import class_folders
from scripts_for_tests import command_of, environment_of
from templates_for_tests import (
    cifar10,
    config_json,
    three_folders,
    three_parts,
    upper_case,
    write,
)
from torch import nn
from torch.optim.lr_scheduler import StepLR

from assembly import choose_metrics, configure
from ballot.config.files import read_config_files
from dataset import load_data
from model import create_model
from optim import create_optimizer, create_scheduler

ROOT = Path(__file__).resolve().parents[2]

NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TORCHVISION_OF_TESTS = """\
from torchvision.datasets import CIFAR10
CIFAR10.train_list = [[name, None] for name, _ in CIFAR10.train_list]
CIFAR10.test_list = [[name, None] for name, _ in CIFAR10.test_list]
CIFAR10.meta = {**CIFAR10.meta, "md5": None}
"""


def told(files) -> tuple[list[str], list[str], list[str]]:
    """Return the three lists of what is told of a project, less the headings."""
    (layer,) = read_config_files(files)
    lines = list(layer.notes)
    done, alike = (k for k, line in enumerate(lines) if not line.startswith("  "))
    assert lines[done].endswith("read as") and lines[alike].endswith(": the same without")
    first = [" ".join(line.split()) for line in lines[done + 1 : alike]]
    return first, [line.strip() for line in lines[alike + 1 :]], []


def test_every_key_of_three_parts_is_told(tmp_path):
    done, alike, _ = told(three_parts(tmp_path))
    scores = "'accuracy_score': None, 'top_k_accuracy_score': {'k': 2}"
    scores = f"{scores}, 'precision_score': None, 'recall_score': None"
    assert done == [
        "model.backbone.pretrained = None -> pretrained = 'no'",
        next(line for line in done if line.startswith("params.evaluation = ") and scores in line),
        "optimizer.lr = 0.02 -> lr = 0.02",
        "optimizer.weight_decay = 0.0003 -> weight_decay = 0.0003",
        f"train_dir = '{tmp_path}/photos_train/all' -> train_dir = '{tmp_path}/photos_train/all'",
        f"val_dir = '{tmp_path}/photos_val' -> val_dir = '{tmp_path}/photos_val'",
        f"test_dir = '{tmp_path}/photos_test/all' -> test_dir = '{tmp_path}/photos_test/all'",
        f"weight_dir = '{tmp_path}/weights' -> model_dir = '{tmp_path}/weights'",
        f"weight_load = '{tmp_path}/load.pth' -> init_from = '{tmp_path}/load.pth'",
        "batch_size = 8 -> batch_size = 8",
        "epochs = 2 -> epochs = 2",
        "train_freq = 2 -> log_every = 2",
        "val_freq = 2 -> val_every = 2",
        "workers = 2 -> workers = 2",
        "dataset = 'ImageNet' -> dataset = 'class_folders'",
        "model.backbone.init_weight = True -> model_args.init = 'paper'",
        "model.cls_head.init_weight = True -> model_args.init = 'paper'",
        "model.backbone.type = 'AlexNet_Backbone' -> model = 'AlexNet'",
        "model.backbone.lrn_param = [3, 0.0002, 0.5, 1.5] -> "
        "model_args.lrn = [3, 0.0002, 0.5, 1.5]",
        "model.cls_head.in_size = 6 -> model_args.pool = 6",
        "model.cls_head.dropout_ratio = 0.4 -> model_args.dropout = 0.4",
        "optimizer.type = 'SGD' -> optimizer = 'SGD'",
        "optimizer.type without a scheduler = 'SGD' -> scheduler = 'constant'",
        "optimizer.momentum = 0.8 -> optimizer_args.momentum = 0.8",
        "model.cls_head.loss_cls.type = 'CrossEntropyLoss' -> criterion = 'cross_entropy'",
        "params.loss.loss_cls.weight = None -> class_weights = 'none'",
        "params.loss.loss_cls.label_smoothing = 0.0 -> criterion_args.label_smoothing = 0.0",
        "ngpus_per_node = 2 -> processes = 2",
        *(line for line in done if line.startswith("pipeline.") and "Normalize" in line),
        f"log_dir = '{tmp_path}/log' -> out_dir = '{tmp_path}/log'",
        "what is left out -> recipe = 'none'",
    ]
    assert [line.split(" = ")[0] for line in alike] == [
        "model.backbone.in_channel",
        "model.cls_head.in_channel",
        "dummy",
        "start_epoch",
        "resume",
        "seed",
        "model.cls_head.num_class",
        "model.type",
        "model.cls_head.multi_label",
        "model.cls_head.avg_pooling",
        "model.cls_head.type",
        "model.cls_head.loss_cls.loss_weight",
        "multiprocessing_distributed",
        "distributed",
        "world_size",
        "rank",
        "dist_url",
        "dist_backend",
    ]


def test_dummy_images_take_the_place_of_the_folders_that_are_named(tmp_path):
    done, alike, _ = told(three_parts(tmp_path, dummy=True))
    assert "dummy = True -> dataset = 'dummy'" in done
    assert "model.cls_head.num_class = 3 -> dataset_args.num_classes = 3" in done
    assert not [line for line in done if line.split("_dir")[0] in ("train", "val", "test")]
    for side in ("train_dir", "val_dir", "test_dir"):
        (line,) = [line for line in alike if line.startswith(f"{side} = ")]
        assert line.endswith("(dummy needs no folder)")


def test_every_key_of_a_config_json_is_told(tmp_path):
    done, alike, _ = told([config_json(tmp_path)])
    assert done == [
        "n_gpu = 1 -> device = 'auto'",
        "data_loader.args.batch_size = 3 -> batch_size = 3",
        "data_loader.args.validation_split = 5 -> val_rows = 5",
        "data_loader.args.num_workers = 2 -> workers = 2",
        f"dataset.args.data_dir = '{tmp_path}/photos' -> data_dir = '{tmp_path}/photos'",
        "optimizer.args.lr = 0.002 -> lr = 0.002",
        "optimizer.args.weight_decay = 0 -> weight_decay = 0",
        "metrics = ['accuracy', 'top_k_acc'] -> metrics = ('acc', 'top3')",
        "trainer.epochs = 2 -> epochs = 2",
        "trainer.save_period = 1 -> save_period = 1",
        "trainer.monitor = 'min val_loss' -> monitor = 'min val_loss'",
        "trainer.early_stop = 10 -> early_stop = 10",
        "trainer.tensorboard = True -> tensorboard = True",
        "dataset.type = 'ImageDataset' -> dataset = 'auto'",
        "data_loader.type = 'FlowerDataLoader' -> dataset = 'auto'",
        "arch.type = 'ResNet' -> model = 'ResNet'",
        "arch.args.num_blocks = [1, 1, 1, 1] -> model_args.num_blocks = [1, 1, 1, 1]",
        "optimizer.type = 'Adam' -> optimizer = 'Adam'",
        "optimizer.args.amsgrad = True -> optimizer_args.amsgrad = True",
        "lr_scheduler.type = 'StepLR' -> scheduler = 'step'",
        "lr_scheduler.args.step_size = 1 -> scheduler_args.step_size = 1",
        "lr_scheduler.args.gamma = 0.3 -> scheduler_args.gamma = 0.3",
        "loss = 'nll_loss' -> criterion = 'cross_entropy'",
        "trainer.verbosity = 2 -> log_every = 1",
        f"trainer.save_dir and name = '{tmp_path}/saved/Mask_ResNet' -> "
        f"out_dir = '{tmp_path}/saved/Mask_ResNet'",
        "what is left out -> recipe = 'none'",
    ]
    assert [line.split(" (")[0] for line in alike] == ["data_loader.args.shuffle = False"]


def test_every_key_of_upper_case_files_is_told_the_later_file_over_the_earlier(tmp_path):
    done, alike, _ = told(upper_case(tmp_path))
    names = list(NAMES)
    half = "'Normalize': {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}"
    assert done == [
        "SEED = 7 -> seed = 7",
        "TRAIN.BATCH_SIZE = 16 -> batch_size = 16",
        "TRAIN.GPUS = 0 -> device = 'cpu'",
        "TRAIN.LR = 0.05 -> lr = 0.05",
        "TRAIN.MAX_EPOCHS = 1 -> epochs = 1",
        "MLFLOW.EXPERIMENT_NAME = 'small_net' -> experiment = 'small_net'",
        "MLFLOW = {'EXPERIMENT_NAME': 'small_net'} -> tracker = ('mlflow',)",
        f"DATA.CACHE_DIR = '{tmp_path}/data' -> data_dir = '{tmp_path}/data'",
        f"DATA.CACHE_DIR = '{tmp_path}/data' -> download = True",
        f"DATA.CLASSES = {names} -> classes = {tuple(names)}",
        "DATA.NUM_WORKERS = 32 -> workers = 32",
        "DATA.VALIDATION_SIZE = 0.25 -> val_ratio = 0.25",
        "DATA.DATASET_TYPE = 'cifer10' -> dataset = 'CIFAR10'",
        "TRAIN.MODEL_TYPE = 'simple_cnn' -> model = 'simple_cnn'",
        "TRAIN.OPTIMIZER_TYPE = 'sgd' -> optimizer = 'SGD'",
        "TRAIN.OPTIMIZER_TYPE without weight_decay = 'sgd' -> weight_decay = 0.0",
        "TRAIN.MOMENTUM = 0.9 -> optimizer_args.momentum = 0.9",
        "TRAIN.SCHEDULER_TYPE = 'step_lr' -> scheduler = 'step'",
        "TRAIN.STEP_SIZE = 2 -> scheduler_args.step_size = 2",
        f"DATA.TRANSFORM_LIST -> pipeline.train = {{'ToTensor': None, {half}}}",
        f"DATA.TRANSFORM_LIST, less chance -> pipeline.val = {{'ToTensor': None, {half}}}",
        "what is left out -> recipe = 'none'",
    ]
    assert [line.split(" = ")[0] for line in alike] == [
        "DATA.INPUT_DIM",
        "TRAIN.DISTRIBUTED_BACKEND",
    ]


def test_alexnet_of_three_parts_is_the_papers_layer_by_layer(tmp_path):
    config, _ = configure(read_config_files(three_parts(tmp_path)))
    args = {**config.model_args, "lrn": [5, 1e-4, 0.75, 2.0], "dropout": 0.5}
    torch.manual_seed(0)
    model, _ = create_model(config.model, 1000, args=args, image_size=227, pretrained="no")
    shapes = []
    hooks = [
        layer.register_forward_hook(lambda m, _, out: shapes.append((type(m).__name__, out.shape)))
        for layer in model.modules()
        if isinstance(layer, (nn.Conv2d, nn.LocalResponseNorm, nn.MaxPool2d, nn.Linear))
    ]
    model.eval()(torch.zeros(1, 3, 227, 227))
    assert [(kind, tuple(shape[1:])) for kind, shape in shapes] == [
        ("Conv2d", (96, 55, 55)),
        ("LocalResponseNorm", (96, 55, 55)),
        ("MaxPool2d", (96, 27, 27)),
        ("Conv2d", (256, 27, 27)),
        ("LocalResponseNorm", (256, 27, 27)),
        ("MaxPool2d", (256, 13, 13)),
        ("Conv2d", (384, 13, 13)),
        ("Conv2d", (384, 13, 13)),
        ("Conv2d", (256, 13, 13)),
        ("MaxPool2d", (256, 6, 6)),
        ("Linear", (4096,)),
        ("Linear", (4096,)),
        ("Linear", (1000,)),
    ]
    for hook in hooks:
        hook.remove()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer, bias in zip(layers, (0, 1, 0, 1, 1, 1, 1, 0), strict=True):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert (layer.bias == bias).all()
    assert [layer.groups for layer in layers[:5]] == [1, 2, 1, 2, 2]


def test_the_files_response_normalisation_is_used(tmp_path):
    config, _ = configure(read_config_files(three_parts(tmp_path)))
    model, _ = create_model(config.model, 3, args=config.model_args, image_size=67)
    norms = [m for m in model.modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(n.size, n.alpha, n.beta, n.k) for n in norms] == [(3, 0.0002, 0.5, 1.5)] * 2
    assert [m.output_size for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)] == [6]


@pytest.mark.parametrize("make", [lambda root: [config_json(root)], upper_case, three_parts])
def test_rates_are_pytorchs_epoch_by_epoch(tmp_path, make):
    config, _ = configure(read_config_files(make(tmp_path)))
    parameter = nn.Linear(2, 2)
    theirs = torch.optim.SGD(parameter.parameters(), lr=config.lr)
    args = {"step_size": 10**9, **config.scheduler_args}  # constant: a step that never comes
    reference = StepLR(theirs, **args)
    ours = create_optimizer(
        config.optimizer,
        parameter,
        lr=config.lr,
        weight_decay=config.weight_decay,
        args=config.optimizer_args,
    )
    schedule = create_scheduler(
        config.scheduler, ours, epochs=7, steps_per_epoch=2, args=config.scheduler_args
    )
    for _ in range(7):
        assert schedule.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        schedule.step_batch()
        assert schedule.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        schedule.step_batch()
        schedule.step_epoch()
        theirs.step()
        reference.step()


def test_metrics_of_a_stage_are_scikit_learns(tmp_path):
    config, _ = configure(read_config_files(three_parts(tmp_path)))
    metrics, _ = choose_metrics(config)
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet([1, 1, 1], 50), rng.integers(0, 3, 50)
    scores = metrics.score(probs, labels, "test")
    best = probs.argmax(1)
    macro = {"average": "macro", "zero_division": 0}
    assert scores.pop("acc") == sklearn.metrics.accuracy_score(labels, best)  # the monitored one
    assert scores == {
        "top_k_accuracy_score": sklearn.metrics.top_k_accuracy_score(labels, probs, k=2),
        "precision_score": sklearn.metrics.precision_score(labels, best, **macro),
        "recall_score": sklearn.metrics.recall_score(labels, best, **macro),
    }
    assert "accuracy_score" in metrics.names("train")


def test_three_folders_given_apart_are_the_three_sides(tmp_path):
    three_folders(tmp_path)
    config, _ = configure(read_config_files(three_parts(tmp_path)))
    data = load_data(config)
    assert data.classes == ["cat", "dog", "emu"] and data.image_size == 67
    assert [len(data.folds[0].train), len(data.folds[0].val), len(data.test)] == [24, 9, 6]
    assert data.test.ids[0] == "test/cat/cat-0.jpg" and (data.test.labels >= 0).all()


def test_images_without_a_resize_keep_their_size_and_classes_have_the_files_names(
    tmp_path, monkeypatch
):
    from torchvision.datasets import CIFAR10

    for name in ("train_list", "test_list", "meta"):  # which the plugin changes for good
        monkeypatch.setattr(CIFAR10, name, getattr(CIFAR10, name))
    exec(TORCHVISION_OF_TESTS)
    cifar10(tmp_path / "data")
    config, _ = configure(read_config_files(upper_case(tmp_path)))
    data = load_data(config)
    assert (len(data.folds[0].train), len(data.folds[0].val)) == (150, 50)
    assert data.classes == list(NAMES)
    images, labels = next(data.folds[0].val.batches(1000))
    row = data.folds[0].val.rows[0]
    stored = CIFAR10(str(tmp_path / "data")).data[int(data.folds[0].val.ids[0].split("-")[1])]
    expected = (torch.from_numpy(stored).permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-5)
    assert row >= 0 and labels.shape == (50,)


@pytest.mark.slow
def test_three_parts_train_in_two_processes_and_save_where_they_say(script, tmp_path):
    three_folders(tmp_path)
    files = three_parts(tmp_path)
    small = {"hidden": 16, "pool": 6}
    start, _ = create_model("AlexNet", 3, args=small, image_size=67, pretrained="no")
    named = {f"backbone.{k}": value for k, value in enumerate(start.state_dict().values())}
    torch.save(named, tmp_path / "load.pth")  # names of another project, the same shapes
    words = [word for path in files for word in ("-c", path)]
    words += ["--model_args.hidden", 16, "-d", "cpu", "--lr", 1e-6]
    done = script("train.py", *words, "--run_name", "parts")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "log" / "parts"
    result = json.loads((run / "result.json").read_text())
    assert result["processes"] == 2 and result["pretrained"]
    assert "top_k_accuracy_score" in result["test"] and "accuracy_score" not in result["test"]
    history = pd.read_csv(run / "history.csv")
    assert history["val_loss"].isna().tolist() == [True, False]  # val_freq
    assert history["train_loss"].notna().all()
    kept = torch.load(tmp_path / "weights" / "parts.pt", weights_only=True)["model"]
    for name, value in start.state_dict().items():  # hardly changed at such a rate
        torch.testing.assert_close(kept[name], value, rtol=0, atol=1e-3)
    assert not torch.equal(kept["classifier.6.bias"], start.classifier[6].bias)
    more = script("train.py", "-r", run / "last.pt", "--epochs", 4, "--processes", 1)
    assert more.returncode == 0, more.stderr
    assert len(pd.read_csv(run / "history.csv")) == 4
    asked = script("predict.py", run, tmp_path / "photos_test", "--out", tmp_path / "new.csv")
    assert asked.returncode == 0 and len(pd.read_csv(tmp_path / "new.csv")) == 6, asked.stderr


@pytest.mark.slow
def test_an_error_of_several_processes_is_one_line_below_one_translation(script, tmp_path):
    words = [word for path in three_parts(tmp_path, dummy=True) for word in ("-c", path)]
    done = script("train.py", *words, "-d", "cpu")  # there is no file of weights to start from
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"error: {tmp_path}/load.pth: ")
    assert [line for line in lines if "epochs = 2" in line] == [
        line for line in lines if line.lstrip().startswith("epochs = ")
    ]
    assert len([line for line in lines if not line.startswith("  ")]) == 3  # two headings


@pytest.mark.slow
def test_upper_case_files_train_into_mlflows_experiment(script, tmp_path):
    cifar10(tmp_path / "data")
    (tmp_path / "own.py").write_text(TORCHVISION_OF_TESTS)
    words = [word for path in upper_case(tmp_path) for word in ("-c", path)]
    done = script("train.py", *words, "--plugins", tmp_path / "own.py", "--run_name", "upper")
    assert done.returncode == 0, done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("small_net")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["dataset"] == "CIFAR10"
    result = json.loads((tmp_path / "outputs" / "upper" / "result.json").read_text())
    assert result["classes"][:2] == ["plane", "car"] and result["image_size"] == 32


@pytest.fixture(scope="module")
def own_project(tmp_path_factory):
    """A config.json project of two epochs, trained by its own flags."""
    root = tmp_path_factory.mktemp("own")
    class_folders(root / "photos", {"cat": 8, "dog": 8, "emu": 8, "fox": 8})
    config_json(root)
    words = ("-c", "config.json", "-d", "cpu", "--learning_rate", 0.004, "--bs", 6)
    start(root, "train.py", *words, "--image_size", 32, "--run_name", "one")
    return root


def start(root, name, *words):
    done = subprocess.run(
        command_of(name, *words),
        cwd=root,
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_config_json_trains_by_its_own_flags(own_project):
    run = own_project / "saved" / "Mask_ResNet" / "one"
    values = json.loads((run / "config.json").read_text())["values"]
    assert (values["lr"], values["batch_size"], values["device"]) == (0.004, 6, "cpu")
    split = pd.read_csv(run / "split.csv")["split"].value_counts()
    assert (split["train"], split["val"]) == (27, 5)  # validation_split: 5
    history = pd.read_csv(run / "history.csv")
    assert history["lr"].tolist()[:2] == pytest.approx([0.004, 0.0012])
    assert (run / "epoch001.pt").exists() and (run / "tensorboard").exists()
    assert "epoch 1, step 1, " in (run / "run.log").read_text()  # verbosity


@pytest.mark.slow
def test_a_file_laid_over_a_resumed_run_changes_how_it_goes_on(own_project):
    run = own_project / "saved" / "Mask_ResNet" / "one"
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    assert len(checkpoint["optimizer"]["state"])
    new = {
        "trainer": {"epochs": 3},
        "optimizer": {"type": "Adam", "args": {"lr": 0.01, "weight_decay": 0, "amsgrad": True}},
        "lr_scheduler": {"type": "StepLR", "args": {"step_size": 2, "gamma": 0.5}},
    }
    write(own_project / "new.json", new)
    said = start(own_project, "train.py", "-c", "new.json", "-r", run / "last.pt")
    assert "resuming after epoch 2 of 3" in said and "another lr: 0.01, was 0.004" in said
    history = pd.read_csv(run / "history.csv")
    assert history["lr"].tolist() == pytest.approx([0.004, 0.0012, 0.005])
    asked = start(own_project, "predict.py", run, "photos", "--out", "new.csv")
    assert len(pd.read_csv(own_project / "new.csv")) == 32, asked


@pytest.mark.slow
def test_what_a_file_over_a_resumed_run_leaves_out_stays_as_it_was(own_project):
    run = own_project / "saved" / "Mask_ResNet" / "one"
    new = {"optimizer": {"type": "SGD", "args": {"lr": 0.01}}, "trainer": {"epochs": 9}}
    write(own_project / "sgd.json", new)
    said = start(own_project, "train.py", "-c", "sgd.json", "-r", run / "last.pt", "--print_config")
    assert "optimizer = 'SGD'" in said and "without a scheduler" not in said
    assert '"optimizer": "SGD"' in said and '"scheduler": "step"' in said


@pytest.mark.slow
def test_a_config_json_is_trained_fold_by_fold(own_project):
    words = ("-c", "config.json", "-d", "cpu", "--image_size", 32, "--epochs", 1, "--folds", 2)
    start(own_project, "train.py", *words, "--run_name", "folds")
    run = own_project / "saved" / "Mask_ResNet" / "folds"
    assert len(pd.read_csv(run / "val.csv")) == 32
    assert (run / "fold0" / "best.pt").exists() and (run / "fold1" / "best.pt").exists()


@pytest.mark.slow
def test_a_search_speaks_as_its_config_json(tmp_path):
    class_folders(tmp_path / "photos", {"cat": 8, "dog": 8, "emu": 8, "fox": 8})
    file = config_json(tmp_path, epochs=1)
    with searches_for_tests.home_of_its_own(tmp_path):
        space = {
            "optimizer;args;lr": {"_type": "loguniform", "_value": [0.001, 0.01]},
            "data_loader.args.batch_size": {"_type": "choice", "_value": [4, 8]},
        }
        write(tmp_path / "search_space.json", space)
        tuner = {"className": "ballot.engines.nni.tuner.Tuner", "codeDirectory": str(ROOT)}
        command = f"python3 -m ballot.preload train.py --resume auto -c {file} --image_size 32"
        searches_for_tests.write_config(
            tmp_path, trialCommand=f"{command} -d cpu", maxTrialNumber=2, tuner=tuner
        )
        with searches_for_tests.search(tmp_path, "--config", "config.yml") as process:
            said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
    folder = tmp_path / "saved" / "Mask_ResNet"
    runs = [json.loads(p.read_text()) for p in folder.glob("*/result.json")]
    assert [run["monitor"] for run in runs] == ["val_loss"] * 2
    rows = pd.read_csv(tmp_path / "saved" / "results.csv")
    assert rows["lr"].between(0.001, 0.01).all() and rows["batch_size"].isin([4, 8]).all()
    database = searches_for_tests.only_experiment(tmp_path) / "db" / "nni.sqlite"
    with sqlite3.connect(database) as base:
        (params,) = base.execute("select params from ExperimentProfile").fetchone()
    assert json.loads(params)["tuner"]["classArgs"] == {"optimize_mode": "minimize"}
    assert (tmp_path / "ensemble" / "ensemble.json").exists()
