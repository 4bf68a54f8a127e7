"""Where an epoch went."""

import json
import re
import time

import pytest

from ballot.training.profiler import PARTS, TRACED, Clock


def epoch(clock, steps=20, last=False):
    """An epoch of steps of 2 ms that read for 1 ms first; returns its seconds and its table."""

    def batches():
        for number in range(steps):
            time.sleep(0.001)
            yield number

    clock.begin(last=last)
    began = time.perf_counter()
    for _ in clock.each(batches()):
        with clock.part("forward"):
            time.sleep(0.002)
    with clock.part("validation"):
        time.sleep(0.01)
    time.sleep(0.005)
    return time.perf_counter() - began, clock.end()


def test_the_parts_of_the_second_epoch_add_up_to_it_and_steps_of_the_first_are_traced(tmp_path):
    clock = Clock(None, tmp_path / "trace.json")
    assert epoch(clock)[1] is None
    seconds, table = epoch(clock)
    assert epoch(clock)[1] is None
    found = {name: float(value) for name, value in re.findall(r"^  (\w+) +([\d.]+) s", table, re.M)}
    assert list(found) == [*PARTS, "report"]
    assert sum(found.values()) == pytest.approx(seconds, rel=0.05, abs=0.01)
    assert found["forward"] >= 0.04 and found["data"] >= 0.02 and found["validation"] >= 0.01
    assert found["report"] >= 0.005 and found["step"] == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    marks = [e for e in events if e.get("name") == "forward" and e.get("cat") == "user_annotation"]
    assert len(marks) == TRACED


def test_an_only_epoch_is_measured_and_a_clock_that_is_not_wanted_says_nothing(tmp_path):
    assert "forward" in epoch(Clock(None, tmp_path / "trace.json"), steps=3, last=True)[1]
    assert (tmp_path / "trace.json").exists()
    assert epoch(Clock(), last=True)[1] is None


@pytest.mark.slow
def test_profile_prints_where_the_second_epoch_went(script, tmp_path):
    done = script("train.py", "--profile", "--epochs", 2, "--run_name", "a", "--no_tensorboard")
    assert done.returncode == 0 and done.stdout.count("of this epoch went") == 1
    assert json.loads((tmp_path / "outputs" / "a" / "trace.json").read_text())["traceEvents"]
