"""An NNI configuration on its way to a plan: read, checked with NNI's own classes, completed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ballot.config.out_dir import outputs_of
from ballot.config.schema import Config
from ballot.config.trial_command import with_own_interpreter
from ballot.engines.interface import Limits, MachineCheck, Outline, Plan
from ballot.engines.nni import checks, config, remote
from ballot.engines.nni.algorithms import add_warm_start
from ballot.engines.nni.machine_check import NniMachineCheck
from ballot.engines.nni.machine_list import filled_in
from ballot.errors import UserError
from ballot.machines.ignored import needed_problems
from ballot.machines.ssh import Link
from ballot.problems import Problem, as_problem
from ballot.values import Json
from ballot.wording import seconds_of


class NniDraft:
    """What NNI makes of a configuration, and what the command line changes of it."""

    def __init__(self, path: Path, outline: Outline, limits: Limits, *, guarded: bool) -> None:
        self.path = path
        self.outline = outline
        self.limits = limits
        self._guarded = guarded
        self._config: Any = None  # nni.experiment.config.ExperimentConfig, once NNI takes it

    @property
    def is_complete(self) -> bool:
        """Whether NNI takes the configuration."""
        return self._config is not None

    @property
    def max_trials(self) -> int | None:
        """How many trials there are to be."""
        return self._config.max_trial_number

    @property
    def max_seconds(self) -> float | None:
        """How long the search may take."""
        limit = self._config.max_experiment_duration
        return None if limit is None else seconds_of(limit, str(self.path))

    @property
    def concurrency(self) -> int:
        """How many trials run at once."""
        if self._config is None:
            return self.limits.concurrency or self.outline.concurrency
        return self._config.trial_concurrency

    @property
    def assigns_gpus(self) -> bool:
        """Whether NNI gives each trial its GPU."""
        return self._config.trial_gpu_number is not None

    def environment_problems(self, port: int) -> list[Problem]:
        """Return what this machine lacks for NNI."""
        return checks.version_problems() + checks.port_problems(port, self.outline.platform)

    def complete(self, warm_start: Sequence[str]) -> list[Problem]:
        """Let NNI read the configuration, and check what it would take and then fail on."""
        outline, where = self.outline, str(self.path)
        if self._guarded and outline.platform == "remote":
            content = filled_in(outline.content, self.path.parent)
            outline = dataclasses.replace(outline, content=content)
        found, problems = config.to_experiment(outline, self.path)
        if not self._guarded:
            problems += checks.shell_problems(sys.executable)
        if outline.version == 1:
            what = "is written for NNI before version 2.0 and was converted"
            problems.append(Problem(where, what, fatal=False))
        if found is None:
            return problems
        problems += self._apply_limits(found)
        if found.use_annotation:
            what, remedy = "useAnnotation is not supported", "leave it out and set searchSpaceFile"
            problems.append(Problem(where, what, remedy))
        if getattr(found.training_service, "reuse_mode", False) is True and self._guarded:
            what = "reuseMode: true runs code of NNI's that the guard does not cover"
            problems.append(Problem(where, what, "leave it out: it is slower, too"))
        self._config = found
        return problems + add_warm_start(found, warm_start, outline.code, self.path)

    def _apply_limits(self, found: Any) -> list[Problem]:
        """Write what the command line says into NNI's configuration; times become seconds."""
        limits, problems = self.limits, []
        seconds = limits.max_seconds
        if seconds is None and found.max_experiment_duration is not None:
            try:
                seconds = seconds_of(found.max_experiment_duration, str(self.path))
            except UserError as error:
                problems.append(as_problem(error))
        found.max_experiment_duration = None if seconds is None else f"{seconds:g}s"
        if limits.max_trials is not None:
            found.max_trial_number = limits.max_trials
        if limits.concurrency is not None:
            found.trial_concurrency = limits.concurrency
        if limits.changes_command:
            found.trial_command = limits.command(self.outline.command)
        return problems

    def give_aim(self, mode: str) -> None:
        """Let the tuner and the assessor aim at `mode` where nothing else is said."""
        config.give_aim(self._config, mode)

    def algorithm_problems(self, mode: str, monitor: str) -> list[Problem]:
        """Return what is wrong with the tuner and the assessor, which are to aim at `mode`."""
        return config.algorithm_problems(self._config, mode, monitor, self.path)

    def resource_problems(self, options: Config | None, gpus: int | None) -> list[Problem]:
        """Return what is wrong with GPUs here, or with what is sent to other machines."""
        if not self.outline.is_local:
            code, ignore_file = self.outline.code, self.machine_check.ignore_file
            return checks.upload_problems(code) + needed_problems(code, ignore_file)
        count = checks.count_gpus() if gpus is None else gpus
        return checks.gpu_problems(
            self._config, options, count, str(self.path), guarded=self._guarded
        )

    @property
    def machine_check(self) -> MachineCheck:
        """What is asked of other machines for NNI's sake."""
        return NniMachineCheck(guarded=self._guarded)

    def uploaded(self) -> Collection[str]:
        """Return the entries of the code folder that NNI would send to other machines."""
        return config.uploaded(self.outline.code)

    def startup_notes(self) -> list[Problem]:
        """Say where the tuner's settings waste a small search."""
        return config.startup_notes(self._config, Path(self.outline.space_source))

    def draw(self, number: int) -> list[Json]:
        """Let the tuner draw from the space; raises what its class raises."""
        return config.samples(self._config, self.outline.space, number)

    def tuner_name(self) -> str:
        """Return what the configuration calls its tuner."""
        return config.name_of(self._config.tuner)

    def leave_out(self, places: Sequence[int]) -> None:
        """Take machines out of NNI's configuration."""
        service = self._config.training_service
        kept = [m for place, m in enumerate(service.machine_list) if place not in places]
        service.machine_list = kept

    def plan(self, links: Sequence[Link], *, maximize: bool) -> Plan:
        """Return the plan of a search that nothing is wrong with."""
        found, outline = self._config, self.outline
        if outline.is_local:
            found.trial_command = with_own_interpreter(found.trial_command)
        if links:
            remote.prepare(found, links)
        elsewhere = not outline.is_local
        return Plan(
            settings=found,
            command=found.trial_command,
            code=outline.code,
            outputs=outputs_of(found.trial_command, outline.code, elsewhere=elsewhere),
            max_trials=found.max_trial_number,
            max_seconds=self.max_seconds,
            concurrency=found.trial_concurrency,
            maximize=maximize,
            may_wait=elsewhere or bool(found.trial_gpu_number),
            links=links,
            elsewhere=elsewhere,
        )
