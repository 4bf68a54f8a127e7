"""A run's log, and what a logging set-up from a stranger may not do."""

from __future__ import annotations

import json
import logging

import pytest

from ballot.errors import UserError
from ballot.training.run_log import StepLines, keep_early, log_to, read_log_config


@pytest.fixture(autouse=True)
def quiet_again():
    """Leave the root logger as it was found."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.setLevel(logging.INFO)
    yield
    for handler in [h for h in root.handlers if h not in before]:
        handler.close()
    root.handlers[:], root.level = before, level


def setup_file(tmp_path, **more):
    handler = {
        "class": "logging.handlers.RotatingFileHandler",
        "filename": "info.log",
        "formatter": "bare",
    }
    setup = {
        "version": 1,
        "formatters": {"bare": {"format": "said: %(message)s"}},
        "handlers": {"file": {**handler, **more.pop("handler", {})}},
        "root": {"level": "INFO", "handlers": ["file"]},
        **more,
    }
    path = tmp_path / "logger.json"
    path.write_text(json.dumps(setup))
    return str(path)


def test_the_log_begins_before_there_is_a_folder(tmp_path):
    keep_early()
    logging.getLogger("x").info("before")
    log_to(tmp_path)
    logging.getLogger("x").warning("after")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["INFO before", "WARNING after"]


def test_a_resumed_run_goes_on_in_its_log(tmp_path):
    (tmp_path / "run.log").write_text("earlier\n")
    log_to(tmp_path)
    logging.getLogger("x").info("later")
    assert (tmp_path / "run.log").read_text().startswith("earlier\n")


def test_files_of_a_logging_set_up_lie_in_the_run_folder(tmp_path):
    setup = read_log_config(setup_file(tmp_path))
    log_to(tmp_path, setup)
    logging.getLogger("x").info("hello")
    assert (tmp_path / "info.log").read_text() == "said: hello\n"
    assert "hello" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize(
    "more, message",
    [
        ({"handler": {"class": "subprocess.Popen", "args": ["true"]}}, "handlers.file.class is"),
        ({"handler": {"()": "os.system"}}, "handlers.file.() would call 'os.system'"),
        ({"handler": {".": {"x": 1}}}, "leave it out"),
        ({"handler": {"stream": "ext://os.environ"}}, "only ext://sys.stdout"),
        ({"handler": {"stream": "cfg://handlers"}}, "only ext://sys.stdout"),
        ({"formatters": {"bare": {"()": "os.system"}}}, "formatters.bare.() would call"),
        ({"formatters": {"bare": {"class": "os.system"}}}, "formatters.bare.class would call"),
        ({"filters": {"f": {"()": "os.system"}}}, "filters.f.() would call"),
        (
            {"handlers": {"a": {"class": "logging.FileHandlr"}}},
            "did you mean 'logging.FileHandler'",
        ),
    ],
)
def test_a_logging_set_up_runs_no_code_of_a_strangers(tmp_path, more, message):
    with pytest.raises(UserError) as caught:
        read_log_config(setup_file(tmp_path, **more))
    assert message in str(caught.value)


def test_a_set_up_that_logging_refuses_is_one_line(tmp_path):
    setup = read_log_config(setup_file(tmp_path, root={"level": "LOUD", "handlers": ["file"]}))
    with pytest.raises(UserError, match="log_config: "):
        log_to(tmp_path, setup)


def test_a_set_up_that_is_no_object_is_named(tmp_path):
    (tmp_path / "l.json").write_text("[]")
    for name in ("l.json", "no.json"):
        with pytest.raises(UserError, match=name):
            read_log_config(str(tmp_path / name))


def test_a_line_comes_every_few_steps_and_the_loss_is_read_only_for_it(caplog):
    caplog.set_level(logging.INFO)
    read = []
    with StepLines(3, 1, 70) as lines:
        for step in range(1, 8):
            if lines.n == 0 or lines.last_print_t < 0:  # as the engine asks
                read.append(step)
                lines.set_postfix_str(f"loss {step}")
            lines.update(10)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "epoch 1, step 3, 30 of 70 images: loss 3",
        "epoch 1, step 6, 60 of 70 images: loss 6",
    ]
    assert read == [1, 3, 6]
