"""Labels of several attributes: joint classes, and what each says of the attributes."""

import numpy as np
import pytest
from images_for_tests import mask_competition, save, table

from ballot.config.layers import merge
from ballot.data.layouts import join_values
from ballot.errors import UserError
from ballot.values import Layer
from dataset import load_data


def load(root, **options):
    values = {"data_dir": str(root), "cache": "off", "image_size": 16, **options}
    return load_data(merge([Layer("test", values)])[0])


def coats(root, rows):
    """Write a CSV of images with a colour and a size each; an empty colour is not told."""
    written = []
    for k, (colour, size) in enumerate(rows):
        path = save(root / f"{k}.png", k).name
        written.append({"path": path, "size": size, "colour": colour, "label": "x"})
    return table(root / "labels.csv", written)


ROWS = [("red", "10"), ("red", "9"), ("blue", "9"), ("red", "10"), ("red", "9"), ("blue", "9")] * 4


def test_the_combinations_that_occur_are_the_classes(tmp_path):
    coats(tmp_path, ROWS)
    data = load(tmp_path, label_column=["colour", "size"])
    assert data.classes == ["blue_9", "red_9", "red_10"]  # numbers by their value; no blue_10
    colour, size = data.attributes
    assert (colour.name, colour.classes, colour.of_class) == ("colour", ("blue", "red"), (0, 1, 1))
    assert (size.name, size.classes, size.of_class) == ("size", ("9", "10"), (0, 0, 1))
    for subset in (data.folds[0].train, data.folds[0].val):
        for name, label in zip(subset.ids, subset.labels):
            assert data.classes[label] == "_".join(ROWS[int(name.split(".")[0])])
    assert data.submission.columns == ("path", "colour_size")


def test_one_column_is_a_label_as_ever(tmp_path):
    coats(tmp_path, ROWS)
    data = load(tmp_path, label_column="colour")
    assert (data.classes, data.attributes) == (["blue", "red"], ())


def test_classes_in_another_order_take_their_attributes_with_them(tmp_path):
    coats(tmp_path, ROWS)
    classes = ["red_10", "blue_9", "red_9"]
    data = load(tmp_path, label_column=["colour", "size"], classes=classes)
    for name, attribute in (("colour", data.attributes[0]), ("size", data.attributes[1])):
        own = [attribute.classes[k] for k in attribute.of_class]
        assert own == [joint.split("_")[name == "size"] for joint in classes]


def test_the_mask_competition_has_its_three_attributes(tmp_path):
    mask_competition(tmp_path)
    data = load(tmp_path)
    assert [(a.name, len(a.classes)) for a in data.attributes] == [
        *(("mask", 3), ("gender", 2), ("age", 3))
    ]
    for number, name in enumerate(data.classes):
        assert name == "_".join(a.classes[a.of_class[number]] for a in data.attributes)
    mask, gender, age = (np.array(a.of_class) for a in data.attributes)
    assert (mask * 6 + gender * 3 + age).tolist() == list(range(18))
    assert load(tmp_path, classification="age").attributes == ()


def test_test_rows_may_lack_the_columns_and_training_rows_may_not(tmp_path):
    coats(tmp_path, ROWS).rename(tmp_path / "train.csv")
    table(tmp_path / "test.csv", [{"path": save(tmp_path / "t.png", 99).name}])
    assert load(tmp_path, label_column=["colour", "size"]).test.labels.tolist() == [-1]
    (tmp_path / "test.csv").unlink()
    coats(tmp_path, [*ROWS, ("", "9")]).rename(tmp_path / "train.csv")
    with pytest.raises(UserError, match=r"1 training rows have no label: 24\.png"):
        load(tmp_path, label_column=["colour", "size"])


@pytest.mark.parametrize(
    "columns, match",
    [
        (["colour", "siez"], "label_column: labels.csv has no column 'siez'; did you mean 'size'"),
        (["colour", "colour"], "label_column: names a column twice: colour, colour"),
        (["colour", "label"], "label has one value in every row; leave that column out"),
    ],
)
def test_columns_that_make_no_label_are_named(tmp_path, columns, match):
    coats(tmp_path, ROWS)
    with pytest.raises(UserError, match=match):
        load(tmp_path, label_column=columns)


def test_values_that_read_alike_once_joined_are_refused():
    with pytest.raises(UserError, match="are both 'a_b_c'; rename a value"):
        join_values("x.csv", ["p", "q"], [("a_b", "c"), ("a", "b_c")])


def test_an_attribute_reads_its_part_of_labels_and_probabilities():
    names, classes, (p, q) = join_values("x", "pq", [("a", "1"), ("b", "1"), ("b", "2")])
    assert names == classes == ["a_1", "b_1", "b_2"]
    assert p.labels(np.array([2, -1, 0])).tolist() == [1, -1, 0]
    np.testing.assert_allclose(q.probs(np.array([[0.5, 0.3, 0.2]])), [[0.8, 0.2]])
