"""Folders with links among them: each image once on each way to it, and no way without an end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from images_for_tests import class_folders

from ballot.config.schema import Config
from ballot.data.image_cache import _images_below
from ballot.data.tables import has_image, list_images
from ballot.machines.sent import facts
from ballot.prediction.inputs import find_images
from ballot.walking import walk
from dataset import find_table


@pytest.fixture
def data(tmp_path):
    return class_folders(tmp_path / "above" / "data", {"a": 12, "b": 12}, suffix=".png")


LOOPS = {
    "to the data": [("a/up", "..")],
    "above the data": [("a/up", "../..")],
    "to itself": [("a/again", "."), ("b/again", ".")],
    "a class of all": [("c", ".")],
    "a side of all": [("test", ".")],
    "two without an end": [("a/x", ".."), ("a/y", ".."), ("b/x", ".."), ("b/y", "..")],
    "deeper": [("a/deep/one", ".."), ("a/deep/two", "../..")],
}


def add(data: Path, links: list[tuple[str, str]]) -> None:
    for place, target in links:
        (data / place).parent.mkdir(exist_ok=True)
        (data / place).symlink_to(target)


@pytest.mark.parametrize("links", LOOPS.values(), ids=LOOPS)
def test_link_loops_add_no_row_and_change_no_label(data, links):
    before = find_table(Config(data_dir=str(data)))
    add(data, links)
    table = find_table(Config(data_dir=str(data)))
    assert (table.classes, table.ids) == (["a", "b"], before.ids) and len(table) == 24
    assert table.labels.tolist() == before.labels.tolist()
    assert find_images([data]).ids == before.ids
    assert len(facts.listing(str(data))) == _images_below(str(data)) == 24


def test_loops_without_an_image_come_to_an_end(tmp_path):
    empty = tmp_path / "empty"
    for name in "abc":
        (empty / name).mkdir(parents=True)
    add(empty, [(f"{name}/{link}", "..") for name in "abc" for link in ("x", "y")])
    assert not has_image(empty)


def test_links_that_are_no_loop_are_followed(data, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c").symlink_to(data / "a")
    (tmp_path / "linked" / "more").symlink_to(data)
    found = list_images(tmp_path / "linked")
    assert len(found) == 12 + 24 and "more/b/b-0.png" in found and "c/a-0.png" in found


def test_a_walk_is_that_of_the_standard_library_where_there_are_no_links(data):
    assert [(w, sorted(d), sorted(f)) for w, d, f in walk(data)] == [
        (w, sorted(d), sorted(f)) for w, d, f in os.walk(data)
    ]
