"""What several tests share: the scripts as a user starts them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest
from scripts_for_tests import command_of, environment_of
from skips_for_tests import install_line

from ballot.cpus import cpu_count

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SKIPPED = pytest.StashKey[str]()

# Several processes of several threads each wait for one another most of the time, on few cores. Set
# before PyTorch is imported, and inherited by what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores Ctrl-C, what `nohup` starts a lost terminal, and so
# does all that they start; a handler is not inherited, so that programs under test begin as in a
# terminal.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests share nothing and start searches that take up to a minute each.
APART = {"test_search.py", "test_survival.py"}
# Each of these takes all cores: never side by side.
HEAVY = {"test_cluster.py", "test_faults.py", "test_remote.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Run one more file than there are processors: searches wait for NNI now and then."""
    return cpu_count() + 1


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    first = (HEAVY, APART)
    items.sort(key=lambda item: ([item.path.name not in f for f in first], -slow[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, and all heavy ones.

    Groups by marks would say the same, but xdist 3.8 does not see them with pytest 9.2
    (pytest-xdist, issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.split("::")[0]
            name = path.rpartition("/")[2]
            return nodeid if name in APART else "heavy" if name in HEAVY else path

    return Files(config, log)


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """Undo what a test's libraries do to others' loggers: some disable all that there are."""
    yield
    logging.disable(logging.NOTSET)
    root = logging.getLogger()  # a script that a test called keeps lines for a run folder to come
    root.handlers = [h for h in root.handlers if not isinstance(h, MemoryHandler)]
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.name.startswith("ballot"):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def script(tmp_path):
    """Start a script of the project in an empty folder: `script("train.py", "--epochs", 1)`."""

    def start(name: str, *args: object, cwd: Path = tmp_path, **env: str):
        return subprocess.run(
            command_of(name, *args),
            cwd=cwd,
            env=environment_of(**env),
            capture_output=True,
            text=True,
            timeout=600,
        )

    return start


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two machines with an sshd each, of namespaces; a test leaves them as it found them."""
    from machines_for_tests import Lab, why_not

    if reason := why_not():
        pytest.skip(f"no machines to test with: {reason}")
    machines = Lab(tmp_path_factory.mktemp("lab"))
    yield machines
    machines.close()


def pytest_terminal_summary(terminalreporter):
    """Say at the end what to install for the tests that were skipped for want of a program."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())]
    terminalreporter.config.stash[SKIPPED] = install_line(reasons)


def pytest_unconfigure(config):
    if line := config.stash.get(SKIPPED, None):
        print(line)
