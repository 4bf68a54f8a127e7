"""Layouts, recognised and read; what every data set and augmentation promises; the script."""

import shutil

import numpy as np
import pytest
import torch
from images_for_tests import SHARED, class_folders, mask_competition, photo, save, table

from ballot.config.schema import Config
from ballot.errors import UserError
from dataset import AUGMENTATIONS, DATASETS, find_table, load_data, main, recognise


def load(root=None, **options):
    options = {"cache": "off", "image_size": 16, **options}
    return load_data(Config(data_dir=None if root is None else str(root), **options))


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return mask_competition(tmp_path_factory.mktemp("masks"))


@pytest.fixture
def folders(tmp_path):
    class_folders(tmp_path / "d" / "train", {"cat": 8, "dog": 6})
    class_folders(tmp_path / "d" / "test", {"cat": 2, "dog": 2}, start=100)
    return tmp_path / "d"


def test_no_data_at_all_is_the_digits():
    data = load_data(Config())
    assert data.name == "digits" and data.classes == list("0123456789")
    assert data.image_size == 32
    ids = [*data.folds[0].train.ids, *data.folds[0].val.ids, *data.test.ids]
    assert len(set(ids)) == 1797 and "digit-0001" in ids
    assert len(data.test) == 359


def test_the_test_set_of_the_digits_is_fixed():
    first, other = (load_data(Config(seed=seed)) for seed in (1, 2))
    assert first.test.ids == other.test.ids
    assert first.folds[0].val.ids != other.folds[0].val.ids


def test_the_digits_are_scikit_learns_pixels():
    from sklearn.datasets import load_digits

    data = load_data(Config(image_size=8, mean=(0.0,), std=(1.0,)))
    images = torch.cat([x.clone() for x, _ in data.test.batches(64)])
    rows = [int(name.split("-")[1]) for name in data.test.ids]
    bunch = load_digits()
    assert np.abs(images[:, 0].numpy() * 16 - bunch.images[rows]).max() < 0.04
    assert data.test.labels.tolist() == bunch.target[rows].tolist()


@pytest.mark.parametrize("name", DATASETS.names(families=False))
def test_every_data_set_keeps_the_contract(name, masks, folders, tmp_path):
    row = {"label": "x", "path": ""}
    rows = [{**row, "path": save(tmp_path / "c" / f"{k}.png", k).name} for k in range(8)]
    for line in rows[:4]:
        line["label"] = "y"
    where = {"digits": None, "dummy": None, "class_folders": folders, "csv": tmp_path / "c"}
    table(tmp_path / "c" / "labels.csv", rows)
    data = load(where.get(name, masks), dataset=name)
    (fold,) = data.folds
    assert len(set(fold.train.ids) | set(fold.val.ids)) == len(fold.train) + len(fold.val)
    assert set(np.unique(fold.train.labels)) <= set(range(len(data.classes)))
    assert len(data.submission.answers) == len(data.classes)
    images, targets = next(iter(fold.train.batches(2, train=True, epoch=0)))
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    assert targets.dtype == torch.int64 and targets.shape == (2,)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_every_augmentation_keeps_the_contract(name):
    args = {"mixup": 0.4, "cutmix": 1.0}
    for given in ({}, args):
        data = load(augmentation=name, augmentation_args=given)
        train = data.folds[0].train
        images, targets = next(iter(train.batches(2, train=True, epoch=0)))
        assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
        assert torch.isfinite(images).all()
        assert targets.shape == ((2, 10) if given else (2,))
        plain, hard = next(iter(train.batches(2)))
        assert plain.shape == (2, 3, 16, 16) and hard.dtype == torch.int64


def test_an_unknown_name_or_argument_has_a_suggestion(folders):
    with pytest.raises(UserError, match="did you mean 'class_folders'"):
        load(folders, dataset="class_folder")
    with pytest.raises(UserError, match="did you mean 'AffineAugmentation'"):
        load(augmentation="AfineAugmentation")
    with pytest.raises(UserError, match="did you mean 'degrees'"):
        load(augmentation="AffineAugmentation", augmentation_args={"degree": 3})


# The mask competition


def test_mask_labels_are_the_competitions(masks):
    data = load(masks)
    assert data.folds[0].train.groups is not None, "by person is the default"
    for part in (data.folds[0].train, data.folds[0].val):
        for name, label in zip(part.ids, part.labels):
            folder, file = name.split("/")
            age = int(folder.split("_")[3])
            mask = 2 if "normal" in file else int("incorrect" in file)
            expected = mask * 6 + 3 * ("_female_" in folder) + (age >= 30) + (age >= 60)
            assert label == expected
    assert len(data.classes) == 18
    assert sum(map(len, (data.folds[0].train, data.folds[0].val))) == 12 * 7, "junk is passed over"


@pytest.mark.parametrize(("kind", "count"), [("mask", 3), ("gender", 2), ("age", 3)])
def test_one_attribute_can_be_learnt_alone(kind, count, masks):
    data, joint = load(masks, classification=kind), load(masks, val_ratio=0.25)
    assert len(data.classes) == count == len(data.submission.answers)
    of_id = dict(zip(joint.folds[0].train.ids, joint.folds[0].train.labels))
    take = {"mask": lambda k: k // 6, "gender": lambda k: k // 3 % 2, "age": lambda k: k % 3}[kind]
    for name, label in zip(data.folds[0].train.ids, data.folds[0].train.labels):
        assert name not in of_id or label == take(of_id[name])


def test_a_submission_keeps_the_form_and_order_of_info_csv(masks):
    data = load(masks)
    assert data.test.ids == ["002.jpg", "001.jpg", "000.jpg"]
    assert data.test.labels.tolist() == [-1] * 3
    assert data.submission.columns == ("ImageID", "ans")
    assert data.submission.answers == [str(k) for k in range(18)]


@pytest.mark.parametrize("part", ["", "train", "train/images"])
def test_any_folder_of_the_competition_will_do(part, masks):
    assert recognise(masks / part) == "MaskSplitByProfileDataset"
    assert len(load(masks / part).test) == 3


def test_the_competitions_machines_are_known_by_their_environment(masks, monkeypatch, tmp_path):
    shutil.copytree(masks / "train" / "images", tmp_path / "in")
    monkeypatch.setenv("SM_CHANNEL_TRAIN", str(tmp_path / "in"))
    monkeypatch.setenv("SM_CHANNEL_EVAL", str(masks / "eval"))
    data = load()
    assert data.name == "MaskSplitByProfileDataset" and len(data.test) == 3


def test_persons_are_apart_by_profile_and_mixed_by_rows(masks):
    def persons(part):
        return {name.split("_")[0] for name in part.ids}

    for seed in range(5):
        (fold,) = load(masks, seed=seed).folds
        assert not persons(fold.train) & persons(fold.val)
    (fold,) = load(masks, dataset="MaskBaseDataset").folds
    assert persons(fold.train) & persons(fold.val)


def test_a_person_told_apart_by_a_suffix_is_another(masks):
    data = load(masks)
    groups = {*data.folds[0].train.groups, *data.folds[0].val.groups}
    assert "000001-1" in groups and len(groups) == 12


def test_odd_names_and_persons_that_disagree_are_told(masks, tmp_path):
    root = shutil.copytree(masks, tmp_path / "m")
    folder = root / "train" / "images" / "000002_male_Asian_59"
    (folder / "mask5.jpg").rename(folder / "maks5.jpg")
    shutil.copytree(folder, folder.with_name("000002_female_Asian_59"))
    problems = {str(p) for p in find_table(Config(data_dir=str(root))).problems}
    assert any("named neither" in p and "maks5.jpg" in p for p in problems)
    assert any("disagree about their gender or age: 000002" in p for p in problems)
    assert any("not listed in train.csv: 000002_female_Asian_59" in p for p in problems)


# Folders


def test_folders_with_sides_are_read_as_torchvision_does(folders):
    from torchvision.datasets import ImageFolder

    data, reference = load(folders), ImageFolder(str(folders / "train"))
    assert data.classes == reference.classes
    expected = {str(p).split("/d/")[1]: label for p, label in reference.samples}
    part = data.folds[0]
    ours = dict(zip([*part.train.ids, *part.val.ids], [*part.train.labels, *part.val.labels]))
    assert ours == expected
    assert dict(zip(data.test.ids, data.test.labels)) == {
        "test/cat/cat-0.jpg": 0,
        "test/cat/cat-1.jpg": 0,
        "test/dog/dog-0.jpg": 1,
        "test/dog/dog-1.jpg": 1,
    }


def test_folders_without_sides_are_classes(tmp_path):
    data = load(class_folders(tmp_path, {"a": 5, "b": 5}))
    assert data.classes == ["a", "b"] and data.test is None


def test_a_validation_folder_is_the_split(folders):
    class_folders(folders / "val", {"cat": 3, "dog": 3}, start=200)
    data = load(folders)
    assert all(name.startswith("val/") for name in data.folds[0].val.ids)
    assert (len(data.folds[0].train), len(data.folds[0].val)) == (14, 6)
    assert len(load(folders, folds=2).folds[0].val) == 10, "folds take all of them"


@pytest.mark.parametrize("inner", ["", "unknown"])
def test_a_test_folder_without_classes_is_unlabelled(inner, folders):
    shutil.rmtree(folders / "test")
    for k in range(3):
        save(folders / "test" / inner / f"{k}.png", 300 + k)
    data = load(folders)
    assert data.test.labels.tolist() == [-1] * 3
    assert data.submission.columns == ("id", "label")
    assert data.submission.answers == ["cat", "dog"]


def test_the_order_of_files_on_disk_decides_nothing(folders, tmp_path):
    other = tmp_path / "e" / "d"
    for file in sorted(folders.rglob("*.jpg"), reverse=True):
        copy = other / file.relative_to(folders)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    first, second = load(folders), load(other)
    assert first.split_rows() == second.split_rows()
    assert first.fingerprint == second.fingerprint


def test_images_outside_of_class_folders_are_told(folders, caplog):
    save(folders / "train" / "stray.jpg", 400)
    load(folders)
    assert "left out: 1 image in no folder of a class" in caplog.text
    with pytest.raises(UserError, match=r"train/stray\.jpg \(an error because of strict\)"):
        load(folders, strict=True)


# CSV


def csv_set(root, count=12, **columns):
    rows = []
    for k in range(count):
        save(root / "pictures" / f"{k}.png", k)
        row = {"path": f"pictures/{k}.png", "label": "ab"[k % 2]}
        rows.append({**row, **{name: make(k) for name, make in columns.items()}})
    return table(root / "labels.csv", rows)


def test_a_csv_is_read_by_its_usual_columns(tmp_path):
    sides = {"split": lambda k: "Train" if k < 8 else ("valid" if k < 10 else "test")}
    csv_set(tmp_path, patient=lambda k: f"p{k // 2}", **sides)
    data = load(tmp_path)
    assert (len(data.folds[0].train), len(data.folds[0].val), len(data.test)) == (8, 2, 2)
    assert data.folds[0].train.groups[0].startswith("p")
    assert "pictures/10.png" in data.test.ids


@pytest.mark.parametrize("odd", ["trian", ""])
def test_one_odd_side_among_known_ones_is_an_error_that_names_its_row(tmp_path, odd):
    csv_set(tmp_path, split=lambda k: odd if k == 5 else ("train" if k < 9 else "test"))
    with pytest.raises(UserError, match=f"row 6 .pictures/5.png. has {odd!r}; .*train"):
        load(tmp_path)


def test_a_column_without_any_side_is_no_split_and_the_next_one_may_be(tmp_path):
    csv_set(tmp_path, split=lambda k: f"part {k % 3}")
    assert load(tmp_path).test is None
    csv_set(tmp_path, split=lambda k: f"part {k % 3}", subset=lambda k: ("train", "test")[k > 8])
    assert len(load(tmp_path).test) == 3


def test_a_csv_is_read_by_the_columns_that_are_named(tmp_path):
    csv_set(tmp_path, kind=lambda k: str(k % 3), owner=lambda k: f"o{k // 3}")
    data = load(tmp_path, label_column=("kind",), group_column="owner")
    assert data.classes == ["0", "1", "2"]
    train, val = (set(part.groups) for part in (data.folds[0].train, data.folds[0].val))
    assert not train & val and len(train | val) == 4


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    csv_set(tmp_path, kind=lambda k: str(k % 2 * 8 + 2))
    assert load(tmp_path, label_column=("kind",)).classes == ["2", "10"]


def test_a_test_csv_beside_needs_no_labels(tmp_path):
    csv_set(tmp_path).rename(tmp_path / "train.csv")
    rows = [{"path": save(tmp_path / f"t{k}.png", 500 + k).name} for k in (2, 1)]
    table(tmp_path / "test.csv", rows)
    data = load(tmp_path)
    assert data.test.ids == ["t2.png", "t1.png"]
    assert data.test.labels.tolist() == [-1, -1]


def test_a_csv_beside_class_folders_with_sides_changes_nothing(folders):
    rows = [
        {"path": f.relative_to(folders).as_posix(), "label": f.parent.name, "split": "train"}
        for f in (folders / "train").rglob("*.jpg")
    ]
    table(folders / "labels.csv", rows)
    assert recognise(folders) == "class_folders"
    by_csv = load(folders, dataset="csv")
    assert by_csv.folds[0].val.ids == load(folders).folds[0].val.ids


def break_columns(path):
    path.write_text("a,b\n1,2\n")


def break_paths(path):
    path.write_text(path.read_text().replace("pictures/", "pixtures/"))


def break_labels(path):
    path.write_text(path.read_text().replace(",a\n", ",\n"))


def break_lines(path):
    path.write_text(path.read_text() + "one,two,three,four\n")


def repeat_a_row(path):
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_columns, r"which column is it\? give --path_column"),
        (break_paths, r"12 images that it lists are not there: pixtures/0.png.* and 7 more"),
        (break_labels, "6 training rows have no label: pictures/0.png"),
        (break_lines, "1 lines have not 2 fields: 14"),
        (repeat_a_row, r"1 ids stand for more than one row: pictures/11.png"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(harm, message, tmp_path):
    harm(csv_set(tmp_path))
    with pytest.raises(UserError, match=message):
        load(tmp_path, dataset="csv")


def test_a_column_that_is_not_there_is_refused(tmp_path):
    csv_set(tmp_path)
    with pytest.raises(UserError, match="no column 'lable'; did you mean 'label'"):
        load(tmp_path, label_column=("lable",))


# What is no data set


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there are no images in it"):
        load(tmp_path)
    save(tmp_path / "a.png", 0)
    with pytest.raises(UserError, match="neither class folders nor a CSV"):
        load(tmp_path)
    with pytest.raises(UserError, match="every training image is of one class, 'only'"):
        load(class_folders(tmp_path / "d", {"only": 4}))


def test_dummy_holds_few_images_however_many_rows():
    data = load(dataset="dummy", dataset_args={"rows": 4000, "num_classes": 3})
    assert len(data.folds[0].train) + len(data.folds[0].val) + len(data.test) == 4000
    assert len(data.classes) == 3


# The script


def test_the_script_says_what_a_folder_is(folders, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sheet = tmp_path / "out" / "sheet.png"
    words = [str(folders), "--out", str(sheet), "--augmentation", "AffineAugmentation"]
    assert main([*words, "--image_size", "24"]) == 0
    text = capsys.readouterr().out
    for part in (
        "class_folders",
        "14 to train",
        "4 to test on (labelled)",
        "48x64 JPEG (18)",
        "cat",
        "57.1%",
        "problems  none",
    ):
        assert part in text
    from PIL import Image

    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width > 9 * 96 and image.height > 2 * 96
    assert main(["--clean_cache"]) == 0
    assert "18 images" in capsys.readouterr().out
    save(folders / "train" / "cat" / "new.jpg", 900)
    assert main(["--clean_cache"]) == 0
    assert "removed: files were added or removed" in capsys.readouterr().out


def test_the_sheet_shows_what_a_trial_would_train_on(folders, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [str(folders), "--out", str(tmp_path / "sheet.png"), "--device", "cpu"]
    assert main([*words, "--model", "resnet18", "--pretrained", "no"]) == 0
    assert "training with TrivialAugment at 160x160" in capsys.readouterr().out  # the recipe's
    assert main([*words, "--recipe", "none"]) == 0
    said = capsys.readouterr().out
    assert "training with BaseAugmentation at 224x224" in said and "another size" in said


def test_the_script_lists_every_problem_and_fails(folders, capsys):
    shutil.copy(folders / "train/cat/cat-0.jpg", folders / "test/dog/copy.jpg")
    photo(1).save(folders / "train/cat/cut.jpg")
    data = (folders / "train/cat/cut.jpg").read_bytes()
    (folders / "train/cat/cut.jpg").write_bytes(data[:-50])
    assert main([str(folders), "--cache", "off"]) == 2
    text = capsys.readouterr().out
    assert "error: 1 times the same image stands on both sides of the split" in text
    assert (
        "warning: 1 training images cannot be decoded and are left out: train/cat/cut.jpg" in text
    )
    assert "labels that contradict each other" in text


def test_the_script_ends_in_a_line_not_a_traceback(capsys, tmp_path):
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: data_dir:")
    assert main(["--agumentation", "x"]) == 2
    assert "did you mean '--augmentation'" in capsys.readouterr().err


# The real images, where they are


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mask_people").is_dir(), reason="the real images are not here")
def test_no_person_is_on_both_sides_for_fifty_seeds_and_every_fold(tmp_path):
    from ballot.data.audit import Copies
    from ballot.data.prepare import make_split

    root = str(SHARED / "mask_people")
    rows = find_table(Config(data_dir=root)).in_order()
    digests = [b""] * len(rows)
    pool = rows.rows_of("train")
    for seed in range(50):
        for options in ({"val_ratio": 0.2}, {"folds": 5}):
            config = Config(data_dir=root, seed=seed, **options)
            held_out = []
            for train, val in make_split(config, rows, pool, Copies(digests)):
                assert not {rows.groups[r] for r in train} & {rows.groups[r] for r in val}
                held_out += val.tolist()
            assert len(set(held_out)) == len(held_out)
            assert len(held_out) == (504 if "folds" in options else len(val))
    (fold,) = load(root, cache=str(tmp_path), image_size=32).folds
    assert len(fold.val) == pytest.approx(504 / 5, abs=7)


# Labels that are probably wrong


def test_doubted_labels_are_listed_drawn_and_left_out(tmp_path, capsys, monkeypatch):
    """From runs to the list, and from the list to a training without those rows."""
    from ballot.vote.ballots import write_ballot

    class_folders(tmp_path / "d", {"cat": 8, "dog": 8})
    ids = [f"{name}/{name}-{k}.jpg" for name in ("cat", "dog") for k in range(8)]
    labels = ["cat"] * 8 + ["dog"] * 8
    probs = np.where(np.array(labels)[:, None] == ["cat", "dog"], 0.9, 0.1)
    probs[3] = 0.05, 0.95
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    write_ballot(tmp_path / "outputs/run/val.csv", ids, ["cat", "dog"], probs, labels)
    monkeypatch.chdir(tmp_path)
    common = ("d", "--cache", "off", "--image_size", "16", "--recipe", "none")
    assert main([*common, "--check_labels", "outputs"]) == 0
    text = capsys.readouterr().out
    assert "judged    16 of 16 labelled rows, by 1 run" in text
    assert "cat/cat-3.jpg  cat    dog        0.950" in text
    assert (tmp_path / "suspects.csv").read_text().splitlines() == [
        "id,label,suggested,confidence,self_confidence",
        "cat/cat-3.jpg,cat,dog,0.95,0.05",
    ]
    from PIL import Image

    with Image.open(tmp_path / "suspects.png") as image:
        assert image.format == "PNG" and image.size == (100, 116)
    whole, less = load("d"), load("d", exclude="suspects.csv")
    for side in ("train", "val"):
        before, now = (set(getattr(data.folds[0], side).ids) for data in (whole, less))
        assert now == before - {"cat/cat-3.jpg"}, "the split is the same but for that row"
    assert less.excluded == ["cat/cat-3.jpg"] and less.fingerprint != whole.fingerprint
    assert main(["d", "--check_labels", "nowhere"]) == 2
    assert "check_labels: nowhere is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,why\nnobody.jpg,x\n", "1 of the 1 ids in .* are not in d, as 'nobody.jpg'"),
        ("train/cat/cat-1.jpg\nno\nne\n", "2 of the 3 ids in .* are not in d, as 'no'"),
        ("test/cat/cat-0.jpg\n", r"lists 1 test rows \(test/cat/cat-0.jpg\), which need an answer"),
        ("\n", "lists no id"),
        (None, "is no file"),
        (
            "".join(f"train/cat/cat-{k}.jpg\n" for k in range(8)),
            "every training image is of one class, 'dog'",
        ),
    ],
)
def test_a_list_that_cannot_be_left_out_is_refused(text, message, folders, tmp_path):
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(folders, exclude=str(path))


def test_excluded_rows_leave_every_fold_and_the_checks(folders, tmp_path, caplog):
    shutil.copy(folders / "train/cat/cat-0.jpg", folders / "train/dog/copy,1.jpg")
    (tmp_path / "list.txt").write_text("train/dog/copy,1.jpg\r\ntrain/dog/dog-0.jpg\n")
    data = load(folders, exclude=str(tmp_path / "list.txt"), folds=3)
    ids = [name for fold in data.folds for name in fold.val.ids]
    assert len(ids) == len(set(ids)) == 13 and not set(ids) & set(data.excluded)
    assert all(len(fold.train) + len(fold.val) == 13 for fold in data.folds)
    assert "contradict" not in caplog.text
