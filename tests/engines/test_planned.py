"""What search.py plans by itself is a configuration that NNI takes."""

import json
from pathlib import Path

import yaml

from ballot.engines.interface import Limits, Sketch
from ballot.engines.nni.engine import NniEngine

ROOT = Path(__file__).resolve().parents[2]


def test_a_planned_search_is_a_configuration_that_is_read_without_a_problem(tmp_path):
    space = {"lr": {"_type": "loguniform", "_value": [0.001, 0.1]}}
    (tmp_path / "search_space.json").write_text(json.dumps(space))
    sketch = Sketch(
        name="photos",
        space_file="search_space.json",
        command="python3 train.py --epochs 2",
        code=ROOT,
        max_seconds=600.0,
        max_trials=7,
        concurrency=2,
        maximize=True,
        first=[{"lr": 0.01}],
        stops_early=True,
    )
    engine = NniEngine()
    engine.write_config(tmp_path / "config.yml", sketch)
    draft, problems = engine.read(tmp_path / "config.yml", Limits(), guarded=True)
    problems += draft.complete([]) + draft.algorithm_problems("maximize", "val_acc")
    assert problems == []
    assert (draft.max_trials, draft.max_seconds, draft.concurrency) == (7, 600.0, 2)
    written = yaml.safe_load((tmp_path / "config.yml").read_text())
    assert written["tuner"]["classArgs"]["first"] == [{"lr": 0.01}]
    assert written["assessor"]["classArgs"]["min_trials"] == 4
