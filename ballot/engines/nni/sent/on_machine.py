"""What is done on another machine: sent there as text and run by its interpreter.

It may import nothing but the standard library. `remote.js` and `collect.py` put a line below it
that calls one of these functions and prints what it returns as JSON.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

FINISHED = ("done", "stopped", "failed")
WORDS = 64_000  # last bytes of what a trial said
READ = 1 << 20


def experiment_folder(experiment: str) -> Path:
    """Return NNI's folder of a search here, which nobody else may look into."""
    root = Path.home() / "nni-experiments"
    root.mkdir(mode=0o700, exist_ok=True)
    root.chmod(0o700)  # the secret address of the manager stands in it
    return root / experiment


def start_keeper(facts: dict) -> dict:
    """Start NNI's keeper of trials, after ending what an earlier one left; say where it listens."""
    for module in ("nni", "nni_node", "pkg_resources"):
        if importlib.util.find_spec(module) is None:
            return {"error": f"{sys.executable} has no {module}"}
    ended = sweep(facts["experiment"], facts["environment"])
    folder = experiment_folder(facts["experiment"]) / "environments" / facts["environment"]
    names = ("trial_keeper", *(f"trial_keeper_{number}" for number in range(1, 10_000)))
    keeper = next(folder / name for name in names if not (folder / name).exists())
    keeper.mkdir(parents=True)
    (keeper / "launcher_config.json").write_text(json.dumps(facts["launcher"]))
    options = ""
    for name, text in facts["preload"].items():
        (keeper / name).write_text(text)
        quoted = str(keeper / name).replace("\\", "\\\\").replace('"', '\\"')
        options += f' --require="{quoted}"'
    command = [sys.executable, "-m", "nni.tools.nni_manager_scripts.launch_trial_keeper", keeper]
    # Where bash finds SSH_CLIENT it reads .bashrc, and `python3` would be another one again.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SSH_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment["NODE_OPTIONS"] = options.strip()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    try:
        answer = json.loads(said)
    except ValueError:
        return {"error": f"NNI's keeper does not start: {said}"}
    if not answer["success"]:
        return {"error": f"NNI's keeper ended at once: {_last_line(answer.get('stderr', ''))}"}
    addresses = listening(int((keeper / "trial_keeper.pid").read_text()))
    version = importlib.metadata.version("nni")
    return {**answer, "version": version, "listens": addresses, "ended": ended}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["without a word"])[0]


def sweep(experiment: str, environment: "str | None" = None, patience: float = 0.0) -> int:
    """End the keepers and trials of a search, or those of one environment; return how many.

    Trials are asked first, and have `patience` seconds to write what they have.
    """
    place = f"/nni-experiments/{experiment}/environments/"
    place += f"{environment}/" if environment else ""
    ended: set = set()
    asked: set = set()
    deadline = time.monotonic() + patience
    while True:
        found = {pid: traces for pid in _own_processes() if place in (traces := _traces(pid))}
        trials = {pid for pid in found if "NNI_OUTPUT_DIR=" in found[pid]}
        late = time.monotonic() >= deadline
        for pid in found:
            if late or pid not in trials:
                _signal(pid, signal.SIGKILL)
            elif pid not in asked and _parent(pid) not in trials:  # it ends its own children
                _signal(pid, signal.SIGTERM)
                asked.add(pid)
        ended |= set(found)
        if not found or time.monotonic() > deadline + 2:
            return len(ended)
        time.sleep(0.1)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.kill(pid, number)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _own_processes() -> "Iterator[int]":
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if entry.stat().st_uid == os.getuid():
                    yield int(entry.name)
            except OSError:
                continue


def _traces(pid: int) -> str:
    """Return by what a process can be known: a keeper's command, a trial's folder."""
    found = ""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
        if any(word.endswith("trial_keeper/main.js") for word in words):
            found = "\n".join(f"{word}/" for word in words)
        names = Path(f"/proc/{pid}/environ").read_text("utf-8", "replace").split("\0")
        found += "\n".join(f"{n}/" for n in names if n.startswith("NNI_OUTPUT_DIR="))
    except OSError:
        pass  # it has ended
    return found


def listening(pid: int) -> list:
    """Return the addresses that a process listens on, as 127.0.0.1:8080."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(entry.readlink()))
        except OSError:
            continue
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.append(_address(words[1]))
    return found


def _address(text: str) -> str:
    host, port = text.split(":")
    numbers = [int(host[place : place + 2], 16) for place in range(0, len(host), 2)]
    if len(numbers) == 4:
        return ".".join(map(str, reversed(numbers))) + f":{int(port, 16)}"
    words = [bytes(reversed(numbers[place : place + 4])).hex() for place in range(0, 16, 4)]
    return f"[{''.join(words)}]:{int(port, 16)}"


def out_folders(experiment: str, out_dir: str) -> list:
    """Return where the trials of a search write their runs, as their command says it."""
    os.environ["NNI_EXP_ID"] = experiment
    wanted = Path(os.path.expandvars(out_dir)).expanduser()
    if wanted.is_absolute():
        return [wanted] if wanted.is_dir() else []
    root = Path.home() / "nni-experiments" / experiment / "environments"  # beside NNI's code copies
    return [path for path in sorted(root.glob(f"*/upload/trial_code/{wanted}")) if path.is_dir()]


def runs(experiment: str, out_dir: str) -> dict:
    """Return the runs of a search that are here: what each says of itself, and when."""
    found: dict = {}
    for folder in out_folders(experiment, out_dir):
        for run in folder.glob(f"{experiment}-*"):
            if not run.is_dir() or run.is_symlink():
                continue
            changed = max((p.stat().st_mtime for p in run.iterdir()), default=0.0)
            if run.name not in found or found[run.name]["changed"] < changed:
                result = _json(run / "result.json")
                said = {key: result.get(key) for key in ("status", "score")}
                found[run.name] = {"folder": str(run), "changed": changed, **said}
    return found


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def manifest(folder: str, checkpoints: str) -> dict:
    """Return size and SHA-256 of every file of a run, its ballot under the name `../<run>.csv`.

    Of the checkpoints those that are named `best`, `all`, or none.
    """
    run = Path(folder)
    found: dict = {}
    paths = [path for path in sorted(run.rglob("*")) if not path.name.startswith(".")]
    for path in [*paths, run.with_name(f"{run.name}.csv")]:
        if path.is_symlink() or not path.is_file():
            continue
        wanted = checkpoints == "all" or (checkpoints == "best" and path.name == "best.pt")
        if path.suffix == ".pt" and not wanted:
            continue
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(READ):
                digest.update(piece)
        name = f"../{path.name}" if path.parent == run.parent else str(path.relative_to(run))
        found[name] = [path.stat().st_size, digest.hexdigest()]
    return found


def words(experiment: str, trial: str) -> dict:
    """Return the last of what a trial said, by file."""
    root = Path.home() / "nni-experiments" / experiment / "environments"
    found: dict = {}
    for name in ("trial.log", "trial.stdout", "trial.stderr"):
        for path in root.glob(f"*/trials/{trial}/{name}"):
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - WORDS))
                    found[f"{path.parts[-4]}/{name}"] = file.read().decode("utf-8", "replace")
    return found


def send(folder: str, wanted: list) -> None:
    """Write files of a run to the standard output, each from an offset on and after its length."""
    out = sys.stdout.buffer
    for name, offset in wanted:
        with (Path(folder) / name).open("rb") as file:
            left = max(0, os.fstat(file.fileno()).st_size - offset)
            out.write(left.to_bytes(8, "big"))
            file.seek(offset)
            while left > 0:
                piece = file.read(min(READ, left))
                if not piece:
                    return  # it has become shorter: the other end sees that something is missing
                out.write(piece)
                left -= len(piece)
    out.flush()
