"""One batch of a search's smallest and largest configuration, in the trial's own interpreter.

The other side of it is `ballot.training.probe`. Nothing here loads torch.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ballot.config.schema import Config
from ballot.config.search_space import corners, each_component, keys_of
from ballot.config.trial_command import TrialCommand, command_problems, parse_command
from ballot.cpus import count_cores, threads_told
from ballot.engines.interface import Plan
from ballot.errors import UserError
from ballot.problems import Problem, as_problem
from ballot.runs.results import Results
from ballot.runs.trials import TrialRecord, is_final
from ballot.search.time_budget import USEFUL, seconds_for_trials
from ballot.training.options import read_options
from ballot.values import Json, Values
from ballot.wording import few, plural, size, span

PATIENCE = 180.0  # seconds until a tryout is ended: a first look at many images takes its time
MODELS = 6  # of which the largest configuration is tried
SMALLER = {
    "max_params": "name a smaller model",
    "max_latency": "name a smaller model or image_size",
}
IN_PARTS = "a batch that does not fit is taken in parts, more slowly"
REPORTING = 5.0  # seconds a trial takes for what is not tried: the engine, trackers, its turn


@dataclass(frozen=True)
class Item:
    """A configuration to try: what it is to a person, a tuner's values, and whether to train.

    With `run` its data have to be those that this run folder was begun with; nothing else is tried.
    """

    name: str
    values: Json
    steps: bool
    run: str | None = None


@dataclass
class Tryout:
    """A process that tries configurations while others are being checked."""

    items: list[Item]
    process: subprocess.Popen
    folder: tempfile.TemporaryDirectory
    began: float = field(default_factory=time.monotonic)

    def finish(self) -> Answers:
        """Wait for it, and return what it said of each configuration."""
        late = False
        try:
            self.process.wait(max(0.0, self.began + PATIENCE - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
        self.end()
        answers: dict[int, Json] = {}
        for line in Path(self.folder.name, "out").read_text(errors="replace").splitlines():
            if line.startswith('{"probe": '):
                answer = json.loads(line)
                answers[answer["probe"]] = answer
        words = Path(self.folder.name, "err").read_text(errors="replace").strip().splitlines()
        self.folder.cleanup()
        return Answers(self.items, answers, self.process.returncode, words[-1:], late)

    def end(self) -> None:
        """End it and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass(frozen=True)
class Answers:
    """What was found out about each configuration, and how the process ended."""

    items: list[Item]
    facts: Mapping[int, Values]
    status: int
    last_words: list[str]
    late: bool

    @property
    def measured(self) -> list[Values]:
        """The answers with times."""
        return [facts for facts in self.facts.values() if "step" in facts]

    @property
    def unmeasured(self) -> list[Item]:
        """The configurations that were to be tried, and of which nothing was heard."""
        return [i for number, i in enumerate(self.items) if i.steps and number not in self.facts]

    @property
    def aim(self) -> tuple[str, str] | None:
        """The monitored score as the trial understands it, and `max` or `min`."""
        known = [facts for facts in self.facts.values() if "mode" in facts]
        return (known[0]["monitor"], known[0]["mode"]) if known else None

    @property
    def above(self) -> dict[int, str]:
        """By the number of an item, which bound its network is above."""
        return {number: facts["above"] for number, facts in self.facts.items() if "above" in facts}

    @property
    def gpus(self) -> int:
        """How many CUDA devices the trial saw."""
        return max((facts["gpus"] for facts in self.measured), default=0)


def what_to_try(space: Values, *, train: bool) -> list[Item]:
    """Return the corners of a valid search space, and each component that it names."""
    smallest, *largest = corners(space)
    items = [Item("the smallest configuration", smallest, train)]
    for values in largest[:MODELS]:
        if values != smallest:
            whose = f" of {_model_of(values)}" * (len(largest) > 1)
            items.append(Item(f"the largest configuration{whose}", values, train))
    tried = [item.values for item in items if train]
    rest = [values for values in each_component(space) if values not in tried]
    return items + [Item("a choice of the search space", values, False) for values in rest]


def _model_of(values: Values) -> object:
    model = values.get("model")
    return model["_name"] if isinstance(model, Mapping) else model


def start(
    command: TrialCommand,
    code: Path,
    items: Sequence[Item],
    threads: int,
    inherited: Mapping[str, str] | None = None,
) -> Tryout:
    """Begin to try the configurations as trials of the search would run.

    `inherited` is the environment without what an engine tells its trials (default: all of it).
    """
    folder = tempfile.TemporaryDirectory(prefix="ballot-check-")
    wanted = Path(folder.name, "wanted.json")
    wanted.write_text(json.dumps([_for_probe(item) for item in items]))
    inherited = os.environ if inherited is None else inherited
    share = {"OMP_NUM_THREADS": str(threads_told() or threads)}
    environment = {**inherited, **share, **command.environment}
    with Path(folder.name, "out").open("w") as out, Path(folder.name, "err").open("w") as err:
        process = subprocess.Popen(
            command.probe(wanted),
            cwd=code,
            env=environment,
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Tryout(list(items), process, folder)


def _for_probe(item: Item) -> Json:
    wish = {"values": item.values, "steps": item.steps}
    return wish if item.run is None else {**wish, "run": item.run}


def check_data(
    command: str,
    code: Path,
    run: Path,
    values: Json,
    inherited: Mapping[str, str] | None = None,
) -> None:
    """Refuse to resume a search whose trials find other data than `run`, one of them, began with.

    `values` are the tuner's for that run. What takes too long or is not ours is left to the trials.
    """
    if command_problems(command, ""):
        return
    parsed = parse_command(command, code)
    if parsed.script < 0:
        return
    config = read_options(parsed, code, "")[0].config
    if config is None or not (config.data_dir or os.environ.get("SM_CHANNEL_TRAIN")):
        return  # digits and random images never change
    item = Item("the data", values, steps=False, run=str(run.absolute()))
    tryout = start(parsed, code, [item], count_cores(), inherited)
    try:
        facts = tryout.finish().facts.get(0, {})
    finally:
        tryout.end()
    if "error" in facts:
        raise UserError(facts["error"])


def check_data_of(
    results: Results,
    plan: Plan,
    trials: Sequence[TrialRecord],
    *,
    inherited: Mapping[str, str] | None = None,
) -> None:
    """Refuse to train more for a search on other data than its newest run was begun with."""
    for trial in reversed(trials):
        run = results.folder_of(trial)
        if not is_final(trial) and (run / "split.csv").is_file():
            check_data(plan.command, plan.code, run, trial.configuration, inherited)
            return


def problems_of(found: Answers, where: str, source: str) -> list[Problem]:
    """Turn what went wrong into problems: `where` is the configuration, `source` the space."""
    problems: dict[str, Problem] = {}
    if found.above and len(found.above) == len(found.items):
        problem = as_problem(next(iter(found.above.values())))
        return [replace(problem, remedy=f"raise the bound, or {SMALLER[problem.where]}")]
    for number, item in enumerate(found.items):
        facts = found.facts.get(number)
        if facts is None:
            problems.setdefault("", _unanswered(found, number, item, where))
            break
        if number in found.above:  # once for each network
            problems.setdefault(f"above: {facts['model']}", _too_large(found.above[number], source))
        for problem in _problems_of(facts, number, item, where, source):
            problems.setdefault(f"{problem.what}", problem)
        for warning in facts["warnings"]:
            problems.setdefault(warning, Problem("train.py", warning, fatal=False))
    return [problem for problem in problems.values() if problem.what]


def _too_large(above: str, source: str) -> Problem:
    """Say that some trials of a search will end before they train."""
    what = f"{above.partition(': ')[2]}: a trial with it ends before it trains"
    return Problem(source, what, "leave it out of the search space", fatal=False)


def _problems_of(facts: Values, number: int, item: Item, where: str, source: str) -> list[Problem]:
    if "error" in facts:
        return [_placed(facts["error"], where, source)]
    if "failed" in facts:  # the search goes on without such a one: it is reported with a floor
        what = f"{item.name} would fail ({facts['failed']})"
        return [Problem(source, what, "make batch_size or image_size smaller", fatal=number == 0)]
    if facts.get("parts", 1) > 1:
        what = f"{item.name} takes a batch in {facts['parts']} parts to fit into memory"
        return [Problem(source, what, "it gives the same result, more slowly", fatal=False)]
    return []


def _placed(error: str, where: str, source: str) -> Problem:
    """Name the file that an error of a trial comes from."""
    for prefix, place in (("tuner: ", source), ("command line: ", f"{where}: trial command")):
        if error.startswith(prefix):
            return as_problem(f"{place}: {error.removeprefix(prefix)}")
    return as_problem(error if ": " in error else f"{where}: {error}")


def _unanswered(found: Answers, number: int, item: Item, where: str) -> Problem:
    if found.late:
        what = f"{item.name} had not taken a step after {PATIENCE:.0f} s; it was not tried further"
        return Problem(where, what, "--no_probe leaves this out", fatal=False)
    if found.status == -signal.SIGKILL:
        what = f"{item.name} was killed by the system, as it does when memory runs out"
        return Problem(where, what, "make batch_size or image_size smaller", fatal=number == 0)
    said = "".join(found.last_words).removeprefix("error: ") or f"exit status {found.status}"
    if said.startswith("command line: "):
        return as_problem(f"{where}: trial command: {said.removeprefix('command line: ')}")
    return Problem(where, f"a trial does not start: {said}")


def estimate(found: Answers, trials: int | None, at_once: int, limit: float | None) -> str:
    """Say how many trials there will be in what time, and what one needs; or nothing."""
    times = [seconds_of_trial(facts) for facts in found.measured]
    if not times:
        return ""
    mean = sum(times) / len(times)
    slots = min(at_once, trials or at_once)
    crowded = 1.0 if found.gpus else max(1.0, slots / (os.cpu_count() or 1))
    total = None if trials is None else math.ceil(trials / slots) * mean * crowded
    usable = math.inf if limit is None else seconds_for_trials(limit)
    if limit is not None and (total is None or total > usable):
        rounds = usable / (mean * crowded)
        if rounds < 1:
            one = span(mean * crowded)
            return (
                f"not one trial ends by itself in {span(limit)}: one takes {one}, so all are "
                "cut and vote with what they have"
            )
        # One that can do a good part of its epochs is begun, and cut at the end.
        fitting = int(rounds + 1 - USEFUL) * slots
        trials, total = min(trials or fitting, fitting), limit
    if trials is None or total is None:
        return ""
    one = (
        span(min(times))
        if span(min(times)) == span(max(times))
        else (f"{span(min(times))} to {span(max(times))}")
    )
    peak = max(facts["peak"] for facts in found.measured)
    kind = "GPU memory" if found.gpus else "memory"
    least = "at least " if found.unmeasured else ""
    return (
        f"about {plural(trials, 'trial')} in {span(total)}, {slots} at once: "
        f"one takes {least}{one} and {size(peak)} of {kind}"
    )


def seconds_of_trial(facts: Values) -> float:
    """Return how long a trial takes: its start, its epochs and the prediction of its answers."""
    batches, predict = facts["batches"], facts["predict"]
    epoch = batches["train"] * facts["step"] + batches["val"] * predict
    fold = facts["epochs"] * epoch + (batches["val"] + batches["test"]) * predict
    beginning = facts["own_start"] + facts["ready"] + facts["first_step"] + REPORTING
    return beginning + fold * facts["folds"]


def memory_notes(found: Answers, at_once: int, source: str) -> list[Problem]:
    """Say where the trials that run at once need more memory than there is."""
    peaks = [facts["peak"] for facts in found.measured]
    if not peaks:
        return []
    if found.gpus:
        have = found.measured[0].get("memory", math.inf)
        need, kind = math.ceil(at_once / found.gpus) * max(peaks), "GPU memory"
    else:
        have, need, kind = available_memory(), at_once * max(peaks), "memory"
    if need <= have:
        return []
    what = f"{at_once} of the largest trials at once need {size(need)} of {size(have)} {kind}"
    return [Problem(source, what, "lower --concurrency", fatal=False)]


def unmeasured_notes(found: Answers, config: Config, source: str) -> list[Problem]:
    """Say which configurations were not measured, and what memory the first may take at most."""
    missing = found.unmeasured
    if not missing:
        return []
    first, more = missing[0], len(missing) - 1
    what = f"{first.name}{f' and {more} more' if more else ''}: memory and time were not measured"
    for item, facts in ((found.items[n], facts) for n, facts in sorted(found.facts.items())):
        if "peak" in facts and _model_of(item.values) == _model_of(first.values):
            times = _amount(first.values, config) / _amount(item.values, config)
            most = f"up to about {size(times * facts['peak'])}"
            what += f", it may take {most}: {times:g} times {item.name}, which takes "
            what += size(facts["peak"])
            break
    return [Problem(source, what, IN_PARTS, fatal=False)]


def _amount(values: Values, config: Config) -> float:
    """Return what a batch's memory grows with: its images, and their pixels where they differ."""
    images = float(values.get("batch_size") or config.batch_size)
    return images * float(values.get("image_size") or config.image_size or 1) ** 2


def elsewhere_notes(space: Values, config: Config, source: str) -> list[Problem]:
    """Say that nothing was measured on other machines, and what is the most, where it is searched.

    The space is a valid one.
    """
    if not {"model", "batch_size", "image_size"} & set(keys_of(space)):
        return []
    _, *largest = corners(space)
    batch = max(int(values.get("batch_size") or config.batch_size) for values in largest)
    models = few(str(_model_of(values) or config.model) for values in largest)
    what = f"memory and time were not measured on the machines: batches of {batch} for {models}"
    return [Problem(source, what, IN_PARTS, fatal=False)]


def capacity_notes(found: Answers, at_once: int, source: str) -> list[Problem]:
    """Say how many trials this machine's cores carry, where others are to run at once.

    One a core, as far as the memory goes: more of them would do no more in the same time, and half
    as many leave cores idle (bench/concurrency.py). GPUs have a rule of their own.
    """
    if not found.measured or any(facts["device"] != "cpu" for facts in found.measured):
        return []
    cores, memory = count_cores(), available_memory()
    peak = max(facts["peak"] for facts in found.measured)
    number = max(1, int(min(cores, memory / peak)))
    if at_once <= number < 2 * at_once:
        return []
    facts = [plural(cores, "core"), f"a trial takes {size(peak)}"]
    if memory < math.inf:
        facts.insert(1, f"{size(memory)} of memory")
    what = (
        f"this machine carries {plural(number, 'trial')} at once "
        f"({', '.join(facts)}), {at_once} are to run at once"
    )
    gain = "does more in the same time" if at_once < number else "does as much"
    return [Problem(source, what, f"--concurrency {number} {gain}", fatal=False)]


def available_memory() -> float:
    """Return the bytes that processes can still have here; unknown is `inf`."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):
        return math.inf
