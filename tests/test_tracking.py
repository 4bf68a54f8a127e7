"""What TensorBoard gets: curves and a picture of the best weights, in the run's own folder."""

from __future__ import annotations

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.tracking import CELL, confusion_picture, log_best


def answers(rows=60, classes=3):
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(classes), rows), rng.integers(0, classes, rows)


def test_the_best_weights_leave_a_picture_and_a_curve_for_each_class(tmp_path):
    probs, labels = answers()
    log_best(tmp_path, 7, probs, labels, ["cat", "dog", "<owl>"])
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["val/confusion"]
    assert events.Images("val/confusion")[0].step == 7
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("val_pr/")]
    assert len(curves) == 3


def test_many_classes_are_left_to_the_report(tmp_path):
    probs, labels = answers(60, 40)
    log_best(tmp_path / "board", 1, probs, labels, [str(k) for k in range(40)])
    assert not (tmp_path / "board").exists()


def test_a_cell_is_as_blue_as_its_share_of_the_true_class():
    probs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    picture = confusion_picture(probs, np.array([0, 1, 1]), ["a", "b"])
    corners = picture[2::CELL, -2 * CELL + 2 :: CELL]  # beside the numbers
    assert corners.shape == (2, 2, 3)
    assert corners[0, 0].tolist() == [0, 114, 178]
    assert corners[0, 1].tolist() == [255, 255, 255]
    assert abs(corners[1, 0].astype(int) - [128, 184, 216]).max() <= 1
