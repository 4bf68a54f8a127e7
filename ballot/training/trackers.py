"""Trackers of a run: TensorBoard, and MLflow and Weights & Biases in processes of their own."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ballot.runs.files import json_or_empty, read_rows, write_json
from ballot.runs.folder import read_config, read_result
from ballot.values import Json, Values

log = logging.getLogger(__name__)

LINGER = 60.0  # seconds that a trial waits at its end for what its trackers still have to send
LIFETIME = 120  # seconds that a tracker has once its trial is gone
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
FILES = (
    "config.json",
    "result.json",
    "history.csv",
    "fold*/history.csv",
    "split.csv",
    "val.csv",
    "submission.csv",
    "run.log",
)
MOST_CLASSES = 30  # whose curves and cells a person looks at
CELL, BLUE = 26, (0, 114, 178)  # pixels of a cell, and its colour where all rows are


class TensorBoard:
    """One event file a run: scalars by step and by epoch, and the hyperparameters beside them."""

    def __init__(self, folder: Path, start_step: int, values: Values, monitor: str) -> None:
        # Imported here: a run that does not track need not load it.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # What an interrupted epoch had written after `start_step` is purged from the page.
        self._writer = SummaryWriter(str(folder), purge_step=start_step or None)
        # SummaryWriter.add_hparams would open a second run; these go into the same event file.
        for summary in hparams(_plain(values), {monitor: 0.0}):
            self._writer._get_file_writer().add_summary(summary)

    def log_steps(self, first_step: int, losses: Sequence[float], lrs: Sequence[float]) -> None:
        """Write the loss and the learning rate of each step of an epoch."""
        for step, (loss, lr) in enumerate(zip(losses, lrs), start=first_step):
            self._writer.add_scalar("step/train_loss", loss, step)
            self._writer.add_scalar("step/lr", lr, step)

    def log_epoch(self, step: int, scores: Mapping[str, float]) -> None:
        """Write an epoch's scores at the step that it ended with."""
        for name, value in scores.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def log_best(
    folder: Path, step: int, probs: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Write what the best weights answer on validation: a confusion matrix, curves by class.

    `probs` is `[N, C]`, `labels` the true classes `[N]`. The file lies beside the scalars' own, so
    that TensorBoard shows one run; many classes are left to the report.
    """
    if len(classes) > MOST_CLASSES:
        return
    from torch.utils.tensorboard import SummaryWriter

    labels = np.asarray(labels)
    with SummaryWriter(str(folder), filename_suffix=".best") as writer:
        picture = confusion_picture(probs, labels, classes)
        writer.add_image("val/confusion", picture, step, dataformats="HWC")
        for number, name in enumerate(classes):
            writer.add_pr_curve(f"val_pr/{name}", labels == number, probs[:, number], step)


def confusion_picture(probs: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix, a true class a row: uint8 `[H, W, 3]`."""
    from PIL import Image, ImageDraw, ImageFont

    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels, probs.argmax(axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # [C, C]
    shade = 255 - share[..., None] * (255 - np.array(BLUE))  # [C, C, 3]
    cells = Image.fromarray(np.kron(shade, np.ones((CELL, CELL, 1))).round().astype(np.uint8))
    font = ImageFont.load_default(12)
    left = 10 + round(max(font.getlength(name) for name in classes))
    picture = Image.new("RGB", (left + cells.width, cells.height), "white")
    picture.paste(cells, (left, 0))
    pen = ImageDraw.Draw(picture)
    for row, name in enumerate(classes):
        middle = row * CELL + CELL // 2
        pen.text((left - 5, middle), name, "black", font, anchor="rm")
        for column in np.flatnonzero(counts[row]):
            colour = "white" if share[row, column] > 0.7 else "black"
            at = (left + column * CELL + CELL // 2, middle)
            pen.text(at, str(counts[row, column]), colour, font, anchor="mm")
    return np.asarray(picture)


def _plain(values: Values) -> Json:
    """Make each value a number, a text or a truth value, as the HParams page wants them."""
    plain: Json = {}
    for key, value in values.items():
        if isinstance(value, (bool, int, float, str)):
            plain[key] = value
        else:
            plain[key] = "none" if value is None else json.dumps(value, default=str)
    return plain


@contextlib.contextmanager
def sending(folder: Path, names: Sequence[str], group: str | None) -> Iterator[None]:
    """Let the trackers `names` follow the run in `folder`; `group` is the search that it is of.

    A tracker that fails is warned of once and never ends the run; at the end it is waited for a
    moment at most.
    """
    senders = [Sender(name, folder, group) for name in dict.fromkeys(names) if name in TRACKERS]
    try:
        yield
    finally:
        deadline = time.monotonic() + LINGER
        for sender in senders:
            sender.end(deadline)


class Sender:
    """The process of one tracker, seen from the trial."""

    def __init__(self, name: str, folder: Path, group: str | None) -> None:
        self.name, self.folder = name, folder
        self.process: subprocess.Popen[bytes] | None = None
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**QUICK, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "ballot.training.trackers", name, str(folder), group or ""]
        try:
            with (folder / f"{name}.log").open("ab") as output:
                self.process = subprocess.Popen(
                    command,
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._warn(str(error))
            return
        self._watch = threading.Thread(target=self._wait, daemon=True)
        self._watch.start()

    def _wait(self) -> None:
        if self.process and self.process.wait() not in (0, -signal.SIGKILL):
            self._warn(read_state(self.folder, self.name).get("failed") or "it ended")

    def _warn(self, reason: str) -> None:
        log.warning("tracker %s: %s; this run goes on without it", self.name, reason)

    def end(self, deadline: float) -> None:
        """Say that the run is over, and wait until all is sent or the deadline has come."""
        if self.process is None or self.process.stdin is None:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self._watch.join(max(0.0, deadline - time.monotonic()))
        if self._watch.is_alive():
            self.process.kill()
            self._watch.join(5)
            self._warn(f"does not answer; what is missing there is in {self.folder}")


def read_state(folder: Path, name: str) -> Json:
    """Read what a tracker's process has noted: the run's id there, epochs sent, why it failed."""
    return json_or_empty(folder / f"{name}.json")


class MLflow:
    """A run of MLflow: in `MLFLOW_TRACKING_URI`, or the SQLite file that `mlflow ui` looks into.

    The trials of a search share an experiment of MLflow's, `ballot-<id>`.
    """

    def __init__(self, folder: Path, group: str, config: Values, run: str | None) -> None:
        from mlflow import MlflowClient

        self._folder = folder
        with _alone(folder.parent / ".mlflow.lock"):  # trials of a search make one data base
            self._client = MlflowClient()
            # One that a person names holds all of their searches.
            wanted = config.get("experiment") or (f"ballot-{group}" if group else None)
            experiment = self._experiment(wanted)
        if run is None:
            tags = {"search": group} if group else {}
            created = self._client.create_run(experiment, run_name=folder.name, tags=tags)
            run = created.info.run_id
            for key, value in _plain(config).items():
                self._client.log_param(run, key, str(value)[:500])
        else:
            self._client.update_run(run, status="RUNNING")
        self.run = run

    def _experiment(self, name: str | None) -> str:
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ballot"
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        """Send an epoch's scores."""
        for key, value in scores.items():
            self._client.log_metric(self.run, key, value, step=epoch)

    def end(self, result: Values, files: Sequence[Path]) -> None:
        """Send the files, and how the run ended."""
        for key, value in final_scores(result).items():
            self._client.log_metric(self.run, key, value)
        for path in files:
            below = path.parent.relative_to(self._folder) if self._folder in path.parents else "."
            self._client.log_artifact(
                self.run, str(path), None if str(below) == "." else str(below)
            )
        status = {"done": "FINISHED", "failed": "FAILED"}.get(str(result.get("status")), "KILLED")
        self._client.set_terminated(self.run, status)


class WandB:
    """A run of Weights & Biases: online with a key, else offline in the run's folder."""

    def __init__(self, folder: Path, group: str, config: Values, run: str | None) -> None:
        import wandb

        has_key = wandb.login(prompt=False)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
        settings = wandb.Settings(
            console="off", silent=True, init_timeout=15, disable_git=True, x_disable_stats=True
        )
        self.run = run or uuid.uuid4().hex[:12]
        self._wandb = wandb.init(
            project=config.get("experiment") or os.environ.get("WANDB_PROJECT", "ballot"),
            group=group or None,
            id=self.run,
            name=folder.name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            mode=mode,
            settings=settings,
        )

    def log(self, scores: Mapping[str, float], epoch: int) -> None:
        """Send an epoch's scores."""
        self._wandb.log({**scores, "epoch": epoch})

    def end(self, result: Values, files: Sequence[Path]) -> None:
        """Send the files, and how the run ended."""
        self._wandb.summary.update({**final_scores(result), "status": result.get("status")})
        root = files[0].parents[2] if files else None
        for path in files:
            self._wandb.save(str(path), base_path=str(root), policy="now")
        self._wandb.finish(exit_code=0 if result.get("status") == "done" else 1)


TRACKERS = {"mlflow": MLflow, "wandb": WandB}


def final_scores(result: Values) -> dict[str, float]:
    """Return the run's score, its best epoch's scores and those of the test rows."""
    scores = {f"best_{key}": value for key, value in (result.get("scores") or {}).items()}
    scores |= {f"test_{key}": value for key, value in (result.get("test") or {}).items()}
    return _numbers({"score": result.get("score"), **scores})


def _numbers(values: Values) -> dict[str, float]:
    """Keep what is a finite number, also where a CSV has it as text."""
    found = {}
    for key, value in values.items():
        with contextlib.suppress(TypeError, ValueError):
            if math.isfinite(float(value)):
                found[key] = float(value)
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str]) -> int:
    """Follow a run for one tracker until its trial is gone: what the trial's `Sender` starts."""
    name, where, group = argv
    folder = Path(where)
    for signum in (signal.SIGINT, signal.SIGTERM):  # the trial's own; its end is ours
        signal.signal(signum, signal.SIG_IGN)
    state = {"sent": {}, **read_state(folder, name), "failed": None}
    try:
        _follow(folder, name, group, state)
    except Exception as error:  # whatever a tracker's library raises
        reason = " ".join(str(error).split())[:300]
        state["failed"] = f"{type(error).__name__}: {reason}"
        with contextlib.suppress(Exception):  # a full disk, too, shall be no more than a warning
            write_json(folder / f"{name}.json", state)
        return 1
    return 0


def _follow(folder: Path, name: str, group: str, state: Json) -> None:
    over = False
    tracker: Any = None
    while True:
        if tracker is None:
            config = read_config(folder)
            tracker = TRACKERS[name](folder, group, config, state.get("run"))
            state["run"] = tracker.run
        for path in sorted([*folder.glob("history.csv"), *folder.glob("fold*/history.csv")]):
            prefix = "" if path.parent == folder else f"{path.parent.name}/"
            for row in read_rows(path)[state["sent"].get(prefix, 0) :]:
                epoch = int(row.pop("epoch"))
                tracker.log({prefix + k: v for k, v in _numbers(row).items()}, epoch)
                state["sent"][prefix] = epoch
        write_json(folder / f"{name}.json", state)
        if over:
            break
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        over = bool(readable)  # nothing is ever written there: the trial has closed it, or is gone
        if over:
            signal.alarm(LIFETIME)
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern))]
    ballot = folder.with_name(f"{folder.name}.csv")
    tracker.end(read_result(folder), [*files, *[ballot] * ballot.exists()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
