"""The rules of the house, read from the source: who may import whom, and what importing does."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.style import (
    LONG,
    circle_in,
    floors_of,
    formatter_comments,
    functions_in,
    graph_of,
    imports,
    module_of,
    sources,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"train", "search", "collect", "ensemble", "predict", "report"}
ASSEMBLY = {"assembly"}  # puts entries of the catalogues together, for scripts
CATALOGUES = {"model", "loss", "dataset", "optim", "metrics"}
WITHOUT_TORCH = ["search", "collect", "ensemble", "report"]

# The packages of ballot/ by their floors: imports point down, never up, never sideways. The
# modules of ballot/ itself are the ground.
FLOORS = [
    {""},
    {"config", "preload"},
    {"runs"},
    {"data", "machines", "tuning"},
    {"vote", "training"},
    {"prediction", "report", "engines"},
    {"search"},
    {"preflight"},
    {"api"},  # one module, for Python programs, above all others
]
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}

# `from ballot import search` is the package, which searches where it is called.
ALLOWED = {"ballot.search": {"ballot.api"}}

# Each outside system has one door.
NNI = "ballot/engines/nni/"
DOORS = {
    "nni": NNI,
    "nni_node": NNI,
    "ray": "ballot/engines/ray/",
    "mlflow": "ballot/training/trackers.py",
    "wandb": "ballot/training/trackers.py",
    "torch.utils.tensorboard": "ballot/training/trackers.py",
    "torch.distributed": "ballot/training/group.py",
}

# What only NNI calls so: statuses, its database, keys of its configuration, its environment.
WORDS_OF_NNI = re.compile(
    r"USER_CANCELED|SYS_CANCELED|EARLY_STOPPED|SUCCEEDED|NO_MORE_TRIAL|TUNER_NO_MORE"
    r"|nni\.sqlite|TrialJobEvent|MetricData|ExperimentProfile|nni[-_]experiments|trial-jobs|/api/v1"
    r"|trialCommand|trialConcurrency|maxTrialNumber|maxExperimentDuration|searchSpaceFile"
    r"|trialCodeDirectory|trialGpuNumber|trainingService|machineList|pythonPath|nniignore|nnictl"
    r"|parameter_id|parameter_source|TUNER/|trial_end|NNI_|NNI's|\bnni_node\b"
)
NAMES_THE_ENGINE = "ballot/engines/choose.py"
RAY = "ballot/engines/ray/"
# Their files are those of config_local.yml.
SAME_KEYS = {f"{RAY}{name}.py" for name in ("config", "draft", "sent")}
SAME_KEYS.add("ballot/engines/planned.py")

PATHS = sources(ROOT)
FILES = [str(path.relative_to(ROOT)) for path in PATHS]
every_file = pytest.mark.parametrize("name", FILES)


def package_of(module):
    """Return the package of ballot/ that a module stands in; nothing for the ground."""
    if module == "ballot.api":
        return "api"
    parts = module.split(".")
    known = len(parts) > 2 or (ROOT / "ballot" / parts[-1]).is_dir()
    return parts[1] if known and len(parts) > 1 else ""


def strings_of(tree):
    """Yield the texts of a file that are not docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings:
            yield node.value


def test_every_file_is_read():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ours = {f for f in listed if "/" not in f or f.startswith("ballot/")}
    assert {f for f in ours if (ROOT / f).exists()} == set(FILES)
    assert len(FILES) > 140


def test_the_files_are_scripts_catalogues_or_machinery():
    top = {path.stem for path in ROOT.glob("*.py")}
    assert top == SCRIPTS | ASSEMBLY | CATALOGUES


def test_every_package_has_its_floor():
    folders = {path.name for path in (ROOT / "ballot").iterdir() if any(path.glob("*.py"))}
    assert folders == set(FLOOR_OF) - {"", "api"}
    for path in PATHS:  # a folder without __init__.py would not be installed
        assert path.parent == ROOT or (path.parent / "__init__.py").is_file(), path


def test_imports_point_down():
    graph = graph_of(PATHS, ROOT)
    wrong = []
    for module, below in graph.items():
        if not module.startswith("ballot."):
            continue
        for name in below - {"ballot", *ALLOWED.get(module, ())}:
            own, other = package_of(module), package_of(name)
            if not name.startswith("ballot."):
                wrong.append(f"{module} imports {name}, a script or a catalogue")
            elif own != other and FLOOR_OF[other] >= FLOOR_OF[own]:
                wrong.append(f"{module} imports {name}, which is not below it")
    assert wrong == []


def test_scripts_and_catalogues_import_what_they_may():
    graph = graph_of(PATHS, ROOT)
    for script in SCRIPTS | ASSEMBLY | CATALOGUES:
        top = {name for name in graph[script] if "." not in name} - {"ballot"}
        assert not top & SCRIPTS, "nobody imports a script"
        if script in CATALOGUES:
            assert top == set(), f"{script}: a catalogue knows no other one"


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(graph_of(PATHS, ROOT)) == []


def test_modules_are_stacked_ten_floors_high_at_most():
    floors = floors_of(graph_of(PATHS, ROOT))
    assert max(floors.values()) < 10, {name for name, floor in floors.items() if floor >= 10}


@every_file
def test_an_outside_system_is_met_at_its_door_only(name):
    for system, door in DOORS.items():
        used = any(i == system or i.startswith(f"{system}.") for i in imports(ROOT / name))
        assert not used or name.startswith(door), f"{system} is met at {door}"
    if name.startswith("ballot/") and not name.startswith((NNI, NAMES_THE_ENGINE)):
        assert not any(i.startswith("ballot.engines.nni") for i in imports(ROOT / name))
    if name.startswith("ballot/") and not name.startswith((RAY, NAMES_THE_ENGINE)):
        assert not any(i.startswith("ballot.engines.ray") for i in imports(ROOT / name))


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(NNI)])
def test_only_its_own_package_knows_the_words_of_nni(name):
    tree = ast.parse((ROOT / name).read_text())
    words = [text for text in strings_of(tree) if WORDS_OF_NNI.search(text)]
    assert name in SAME_KEYS or words == []
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if name != NAMES_THE_ENGINE:
        assert [n for n in names if re.search("(^|_)(nni|NNI)(_|$)|Nni[A-Z]", n)] == []


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_scripts_that_train_nothing_do_not_load_torch(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@every_file
def test_functions_fit_on_a_screen(name):
    assert [f for f, lines in functions_in(ROOT / name) if lines > LONG] == []


@every_file
def test_the_formatter_is_only_kept_from_the_table_of_options(name):
    kept = {"fmt: off": 1} if name == "ballot/config/schema.py" else {}
    assert formatter_comments(ROOT / name) == kept


@every_file
def test_no_code_comes_out_of_data(name):
    source = ast.parse((ROOT / name).read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    for call in calls:
        called = ast.unparse(call.func)
        assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load")
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("shell") != "True"
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"


def test_the_name_of_a_module_is_its_place():
    assert module_of(ROOT / "ballot" / "runs" / "files.py", ROOT) == "ballot.runs.files"
