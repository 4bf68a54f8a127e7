"""The rules of the house, read from the source: who may import whom, and what importing does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train", "search", "collect", "ensemble", "predict", "report"}
ASSEMBLY = {"assembly"}  # puts entries of the catalogues together, for scripts
CATALOGUES = {"model", "loss", "dataset", "optim", "metrics"}
WITHOUT_TORCH = ["search", "collect", "ensemble", "report"]

# Each outside system has one door.
DOORS = {
    "nni": {
        "ballot/engines/nni/trial.py",
        "ballot/engines/nni/manager.py",
        "ballot/engines/nni/config.py",
        "ballot/tuning/tpe.py",
        "ballot/tuning/asha.py",
    },
    "mlflow": {"ballot/training/trackers.py"},
    "wandb": {"ballot/training/trackers.py"},
    "torch.utils.tensorboard": {"ballot/training/trackers.py"},
    "torch.distributed": {"ballot/training/process.py"},
}

FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "harness").glob("*.py")])


def imports(path):
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_files_are_scripts_catalogues_or_machinery():
    top = {path.stem for path in ROOT.glob("*.py")}
    assert top == SCRIPTS | ASSEMBLY | CATALOGUES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    ours = {name.split(".")[0] for name in imports(path)} & (
        SCRIPTS | ASSEMBLY | CATALOGUES | {"harness"}
    )
    if path.parent.name == "harness":
        assert ours <= {"harness"}, "the machinery knows no script and no catalogue"
    elif path.stem in CATALOGUES:
        assert ours <= {"harness"}, "a catalogue knows no other catalogue and no script"
    else:
        assert not ours & SCRIPTS, "nobody imports a script"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_an_outside_system_is_met_at_its_door_only(path):
    name = str(path.relative_to(ROOT))
    for system, doors in DOORS.items():
        used = any(i == system or i.startswith(f"{system}.") for i in imports(path))
        assert not used or name in doors


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_scripts_that_train_nothing_do_not_load_torch(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_comes_out_of_data(path):
    source = ast.parse(path.read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    for call in calls:
        name = ast.unparse(call.func)
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load")
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("shell") != "True"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
