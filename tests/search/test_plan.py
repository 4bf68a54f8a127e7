"""A search planned from a folder and a time: what is decided, and what is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from images_for_tests import class_folders

from ballot.config.layers import merge
from ballot.config.search_space import find_problems
from ballot.data.survey import check_folder
from ballot.engines.choose import load_engine
from ballot.errors import UserError
from ballot.search import plan
from ballot.search.plan import (
    Prospect,
    Request,
    lines_of,
    options_of,
    read_request,
    schedule_of,
    write_files,
)
from ballot.tuning.tpe import TPE
from ballot.values import Layer


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos", {"cat": 12, "dog": 6})


def prospect(request, trial_s=60.0):
    return Prospect(read_request(request), trial_s, concurrency=2, mode="max")


def configured(photos, tmp_path, **more):
    request = Request(photos, max_seconds=7200.0, **more)
    found = prospect(request)
    file = write_files(
        load_engine("nni"), request, found, schedule_of(found, request), tmp_path / "place"
    )
    return yaml.safe_load(file.read_text()), json.loads(
        (file.parent / "search_space.json").read_text()
    )


def test_each_first_configuration_is_one_of_the_space_and_train_takes_it(photos, tmp_path):
    config, space = configured(photos, tmp_path)
    assert find_problems(space, "space") == []
    first = config["tuner"]["classArgs"]["first"]
    assert first[0]["recipe"]["_name"] == "probe" and len(first) >= 4
    tuner = TPE(space, first=first, seed=1)
    for wanted in first:
        values = tuner.ask()
        assert values["recipe"].items() >= wanted["recipe"].items()
        merged, origin = merge([Layer("tuner", values)])
        if merged.recipe == "auto":  # a network that the tuner names has no recipe of its own
            assert merged.freeze == wanted["recipe"]["freeze"]
        assert merged.recipe == wanted["recipe"]["_name"] and origin["image_size"] == "tuner"


@pytest.mark.parametrize("flag", ["--exclude", "--soft_labels"])
@pytest.mark.parametrize("form", ["{} bad.csv", "{}=bad.csv"])
def test_a_list_is_found_from_the_folder_of_the_trials(flag, form, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = form.format(flag).split()
    options = options_of(Request(photos, options=["--lr", "0.1", *words, "--epochs", "3"]))
    wanted = ["--lr", "0.1", flag, str(tmp_path / "bad.csv"), "--epochs", "3"]
    assert options[2:] == wanted


def test_photos_without_a_recipe_are_not_called_grey(photos):
    request = Request(photos, max_seconds=600.0, options=["--recipe", "none"])
    facts = prospect(request)
    first = lines_of(facts, schedule_of(facts, request), photos)[0]
    assert first == "no recipe: plain defaults where nothing is given"


def test_what_the_command_line_fixes_is_not_searched(photos, tmp_path):
    options = ["--lr", "0.01", "--model", "simple_cnn"]
    config, space = configured(photos, tmp_path, options=options)
    assert "lr" not in json.dumps(space) and "model" not in json.dumps(space)
    assert "--lr 0.01 --model simple_cnn" in config["trialCommand"]
    assert all("lr" not in each for each in config["tuner"]["classArgs"]["first"])


def test_a_short_time_cuts_epochs_and_a_shorter_one_is_refused(photos):
    request = Request(photos, max_seconds=600.0)
    usual, slow = (schedule_of(prospect(request, trial_s=s), request) for s in (20.0, 200.0))
    assert usual.epochs > slow.epochs >= plan.LEAST_EPOCHS
    assert usual.trials + usual.refit < 600 and usual.refit > 0
    assert schedule_of(prospect(request, 20.0), Request(photos, max_seconds=120.0)).refit == 0
    with pytest.raises(UserError, match="are too short: an epoch of one trial takes"):
        schedule_of(prospect(request, trial_s=20_000.0), request)


def test_more_time_goes_into_larger_images_first_as_far_as_the_photos_go(tmp_path):
    large = class_folders(tmp_path / "large", {"cat": 12, "dog": 6}, width=400, height=300)
    request = Request(large, max_seconds=7200.0)
    short, long = (schedule_of(prospect(request, trial_s=s), request) for s in (1500.0, 60.0))
    usual = read_request(request).base.image_size
    assert short.image_size == usual and usual < long.image_size <= 304
    assert long.expected > short.expected
    named = Request(large, max_seconds=7200.0, options=["--image_size", "64"])
    assert schedule_of(prospect(named), named).image_size == 64


def test_with_more_time_some_trials_are_longer_and_train_all_blocks(tmp_path):
    large = class_folders(tmp_path / "large", {"cat": 12, "dog": 6}, width=400, height=300)
    request = Request(large, max_seconds=7200.0)
    made = {}
    for seconds in (60.0, 1500.0):
        facts = prospect(request, trial_s=seconds)
        made[seconds] = plan.portfolio_of(facts, schedule_of(facts, request))
    usual = read_request(request).base
    for seconds, epochs, freeze in [
        (60.0, [usual.epochs, 20], [usual.freeze, "0"]),
        (1500.0, [usual.epochs], [usual.freeze]),
    ]:
        space = made[seconds].space["recipe"]["_value"][0]
        assert (space["epochs"]["_value"], space["freeze"]["_value"]) == (epochs, freeze)
        tried = [
            (each["recipe"].get("epochs"), each["recipe"].get("freeze"))
            for each in made[seconds].first
        ]
        assert ((20, "0") in tried) == (seconds == 60.0)


def test_without_a_time_a_sensible_one_is_proposed(photos):
    request = Request(photos)
    short, long = (schedule_of(prospect(request, trial_s=s), request).total for s in (10.0, 1000.0))
    assert short == 600 and long > 3600


def test_each_search_has_a_folder_of_its_own(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = plan.new_place(photos)
    first.mkdir(parents=True)
    assert first == Path("searches/photos-1") and plan.new_place(photos) != first


def test_a_folder_too_high_and_a_class_of_one_image_are_named(photos, tmp_path):
    config, _ = merge([])
    check_folder(photos, config)
    with pytest.raises(UserError, match=r"holds data sets \(photos\), not classes; name one"):
        check_folder(tmp_path, config)
    class_folders(photos, {"emu": 1}, start=50)
    with pytest.raises(UserError, match="class 'emu' has one image"):
        check_folder(photos, config)


LITE0, LITE1 = "timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite1"


def test_networks_and_sizes_above_a_bound_are_neither_tried_nor_searched(photos):
    request = Request(photos, max_seconds=7200.0, options=["--max_latency", "20ms"])
    found = prospect(request)
    schedule = schedule_of(found, request)
    assert schedule.image_size == found.fixed.base.image_size  # larger ones would take longer
    shapes = plan.shapes_to_try(found, schedule)
    sizes = sorted({shape["image_size"] for shape in shapes})
    assert {shape["model"] for shape in shapes} >= {LITE0, LITE1} and len(sizes) > 1
    small = {"model": LITE1, "image_size": sizes[0]}
    above = [shape for shape in shapes if shape["model"] != LITE0 and shape != small]
    made = plan.portfolio_of(replace(found, above=above), schedule)
    text = json.dumps([made.space, made.first])
    assert LITE0 in text and LITE1 in text and "lite2" not in text
    tried = [values["recipe"] for values in made.first]
    assert all(each["image_size"] == sizes[0] for each in tried if each["model"] == LITE1)
    assert len(tried) < len(plan.portfolio_of(found, schedule).first)
    nothing = plan.portfolio_of(replace(found, above=shapes), schedule)
    assert (nothing.space, nothing.first) == ({}, [])


def test_a_bound_on_parameters_asks_for_each_network_once(photos):
    request = Request(photos, max_seconds=7200.0, options=["--max_params", "4M"])
    found = prospect(request)
    shapes = plan.shapes_to_try(found, schedule_of(found, request))
    assert {"model": LITE0} in shapes and all(list(shape) == ["model"] for shape in shapes)
    assert plan.shapes_to_try(prospect(Request(photos)), schedule_of(found, request)) == []


@pytest.mark.parametrize("options", [(), ("--exclude", "loop")])
def test_a_folder_or_a_list_that_is_a_link_to_itself_is_one_line(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    request = Request(data_dir=tmp_path if options else Path("loop"), options=options)
    with pytest.raises(UserError, match="loop: is a link that leads to itself; name a"):
        options_of(request)
