"""Trials forked from a process that has imported everything, against the same started plainly."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ballot.cpus import count_cores
from ballot.engines.nni.processes import end_processes
from ballot.preload import command
from ballot.preload.server import Preloader, begun_at

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


@pytest.fixture
def place(tmp_path):
    """A folder for scripts, with sockets of its own and no process left behind."""
    (tmp_path / "code").mkdir()
    (tmp_path / "t").mkdir()
    yield tmp_path
    for process in preloaders(tmp_path):
        with contextlib.suppress(psutil.Error):
            process.kill()


def preloaders(place):
    """The preloaders of this folder, without the trials that they have forked."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "ballot.preload.server" in words and str(place) in " ".join(words):
                found[process.pid] = process
    return [each for each in found.values() if each.ppid() not in found]


def script(place, text, name="trial.py"):
    path = place / "code" / name
    path.write_text(text)
    past = time.time() - 100  # an edit in the last seconds is taken for one during the imports
    os.utime(path, (past, past))
    return path


def environment(place, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NNI_")}
    return {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": str(place / "t"), **more}


def begin(place, path, *words, plain=False, cwd=None, **more):
    how = [] if plain else ["-m", "ballot.preload"]
    return subprocess.Popen(
        [sys.executable, *how, path, *words],
        cwd=cwd or place,
        env=environment(place, **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(place, path, *words, stdin="", **more):
    process = begin(place, path, *words, **more)
    out, err = process.communicate(stdin, timeout=60)
    return process.returncode, out, err


def lives(pid):
    with contextlib.suppress(psutil.Error):  # one that nobody has waited for is dead
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(reached, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


FACTS = """
import json, os, resource, signal, sys
umask = os.umask(0)
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "umask": umask, "name": __name__,
    "file": __file__, "main": sys.modules["__main__"].__dict__ is globals(),
    "environment": {k: v for k, v in os.environ.items() if k not in ("BALLOT_PARENT", "_")},
    "stdin": sys.stdin.read(), "cores": sorted(os.sched_getaffinity(0)),
    "limits": [resource.getrlimit(r) for r in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
    "nice": os.getpriority(os.PRIO_PROCESS, 0), "flags": repr(sys.flags),
    "streams": [(s.encoding, s.errors, s.line_buffering, s.isatty(), bool(n and s.write_through))
                for n, s in enumerate((sys.stdin, sys.stdout, sys.stderr))],
    "signals": [str(signal.getsignal(n)).split(" at ")[0] for n in range(1, 32)],
}))
print("a word", file=sys.stderr)
"""


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "latin-1"}])
def test_a_trial_has_all_that_a_plain_start_would_have(place, more):
    path = script(place, FACTS)
    more = {**more, "LETTERS": "ä\udcff", "NNI_TRIAL_JOB_ID": "x", "OMP_NUM_THREADS": "3"}
    before = os.umask(0o027)
    try:
        told = [
            run(place, path, "--a", "b c", stdin="typed", plain=plain, cwd=ROOT, **more)
            for plain in (False, True)
        ]
    finally:
        os.umask(before)
    (status, out, err), plainly = told
    assert json.loads(out) == json.loads(plainly[1])
    assert (status, err) == (plainly[0], plainly[2]) == (0, "a word\n")
    assert json.loads(out)["stdin"] == "typed" and json.loads(out)["umask"] == 0o027


@pytest.mark.parametrize(
    "text",
    [
        "sys.exit(3)",
        "sys.exit('words')",
        "sys.exit(None)",
        "sys.exit(-1)",
        "1 / 0",
        "atexit.register(print, 'last')\nf = open('left', 'w')\nf.write('kept')",
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os._exit(7)",
        "sys.stdout.close()",
    ],
)
def test_it_ends_as_a_plain_start_would(place, text):
    path = script(place, f"import atexit, os, signal, sys, threading, time\nprint('begun')\n{text}")
    ends = []
    for plain in (False, True):
        ends.append([run(place, path, plain=plain), *(f.read_text() for f in place.glob("left"))])
        (place / "left").unlink(missing_ok=True)
    assert ends[0] == ends[1]


def test_an_interrupt_that_nobody_catches_ends_it_without_a_traceback(place):
    path = script(place, "import time\nprint('here', flush=True)\ntime.sleep(30)")
    process = begin(place, path)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "") and process.returncode == -signal.SIGINT


def test_what_the_script_imports_is_imported_once_for_all_trials(place):
    script(place, "with open('imports', 'a') as f:\n    f.write('x')", name="heavy.py")
    path = script(place, "import os\nfrom heavy import f\nprint(os.getppid())")
    parents = {run(place, path)[1] for _ in range(3)}
    assert parents == {f"{preloaders(place)[0].pid}\n"}
    (count,) = [*(ROOT.glob("imports")), *place.rglob("imports")]
    text = count.read_text()
    count.unlink()
    assert text == "x"


def test_commands_that_come_at_once_start_one_preloader(place):
    script(place, "import time; time.sleep(0.5)", name="heavy.py")
    path = script(place, "import os\nimport heavy\nprint(os.getppid())")
    processes = [begin(place, path) for _ in range(4)]
    parents = {process.communicate(timeout=60)[0] for process in processes}
    assert len(parents) == 1 and len(preloaders(place)) == 1


COUNTING = """
import signal, sys, time
heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, _: heard.append(number))
print("ready", flush=True)
end = time.time() + 20
while len(heard) < int(sys.argv[1]) and time.time() < end:
    time.sleep(0.01)
time.sleep(0.3)  # for one that comes twice
print([int(n) for n in heard])
"""


# The answer that tells of the trial is read a second late, as where the machine is busy.
LATE = """
import sys, time
from ballot.preload import command
receive = command.receive
command.receive = lambda link: (time.sleep(1), receive(link))[1]
sys.exit(command.main(sys.argv[1:]))
"""


def test_a_signal_that_comes_before_the_trial_is_known_reaches_it(place):
    process = subprocess.Popen(
        [sys.executable, "-c", LATE, script(place, COUNTING), "1"],
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == f"[{int(signal.SIGINT)}]\n"


def test_signals_reach_the_trial_once(place):
    process = begin(place, script(place, COUNTING), "4")
    assert process.stdout.readline() == "ready\n"
    sent = [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM]
    for number in sent:
        process.send_signal(number)
        time.sleep(0.1)
    assert process.communicate(timeout=30) == (f"{[int(n) for n in sent]}\n", "")


def test_ctrl_c_on_a_terminal_reaches_the_trial_once(place):
    path = script(place, COUNTING)
    master, slave = os.openpty()
    with os.fdopen(slave) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "ballot.preload", path, "1"],
            env=environment(place),
            cwd=place,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
    said = b""
    while b"ready" not in said:
        said += os.read(master, 1000)
    os.write(master, b"\x03")
    process.wait(30)
    said = os.read(master, 1000)
    os.close(master)
    assert f"[{int(signal.SIGINT)}]".encode() in said


def test_it_can_be_suspended_and_woken(place):
    path = script(place, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(1)\nprint(1)")
    process = begin(place, path)
    trial = psutil.Process(int(process.stdout.readline()))
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: trial.status() == psutil.STATUS_STOPPED)
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20) == ("1\n", "") and process.returncode == 0


SLEEPING = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"])
print(os.getpid(), child.pid, os.getppid(), flush=True)
time.sleep(60)
"""


def test_a_kill_of_the_command_kills_the_trial_and_its_children(place):
    process = begin(place, script(place, SLEEPING))
    *pids, _ = map(int, process.stdout.readline().split())
    process.kill()
    began = time.monotonic()
    wait_for(lambda: not any(lives(pid) for pid in pids))
    assert time.monotonic() - began < 1
    process.communicate()


def test_a_kill_of_the_preloader_kills_its_trials_and_is_seen_as_a_kill(place):
    process = begin(place, script(place, SLEEPING))
    *pids, parent = map(int, process.stdout.readline().split())
    os.kill(parent, signal.SIGKILL)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == -signal.SIGKILL and "has died" in said
    wait_for(lambda: not any(lives(pid) for pid in pids), 2)
    assert run(place, script(place, "print(1)", name="trial.py"))[1] == "1\n"


def test_what_a_search_left_is_found_by_its_command(place):
    path = script(place, SLEEPING)
    process = begin(place, path, NNI_EXP_ID="anExperiment", NNI_PLATFORM="local")
    *pids, parent = map(int, process.stdout.readline().split())
    assert not any(name.startswith("NNI_") for name in psutil.Process(parent).environ())
    assert end_processes("anExperiment", place, 1.0) == 2  # `sleep` has the variable, too
    wait_for(lambda: not any(lives(pid) for pid in pids[:1]), 2)
    process.communicate(timeout=5)
    assert lives(parent)


def test_code_that_has_changed_is_imported_anew_while_old_trials_go_on(place):
    script(place, "VALUE = 1", name="heavy.py")
    path = script(
        place,
        "import heavy, sys\nprint(heavy.VALUE, flush=True)\nsys.stdin.read()\nprint(heavy.VALUE)",
    )
    first = begin(place, path)
    assert first.stdout.readline() == "1\n"
    (place / "code" / "heavy.py").write_text("VALUE = 22")
    assert run(place, path)[1] == "22\n22\n"
    assert first.communicate("", timeout=10) == ("1\n", "") and first.returncode == 0
    wait_for(lambda: len(preloaders(place)) == 1)  # the old one ends with its last trial
    was = (place / "code" / "heavy.py").stat()
    (place / "code" / "heavy.py").write_text("VALUE = 33")
    os.utime(place / "code" / "heavy.py", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert run(place, path)[1] == "33\n33\n"


def test_it_ends_when_nobody_needs_it_and_when_a_folder_of_its_vanishes(place):
    path = script(place, "print(1)")
    assert run(place, path, BALLOT_PRELOAD="0.5")[0] == 0
    wait_for(lambda: preloaders(place) == [])
    assert not list((place / "t").rglob("preload-????????????????"))
    assert run(place, path)[0] == 0 and len(preloaders(place)) == 1
    shutil.rmtree(place / "t")
    wait_for(lambda: preloaders(place) == [])
    (place / "t").mkdir()
    assert run(place, path)[0] == 0 and len(preloaders(place)) == 1
    path.unlink()
    wait_for(lambda: preloaders(place) == [])


def test_it_ends_a_minute_after_the_last_search_that_it_served(place):
    server = Preloader(place / "socket", script(place, ""), 900.0, time.time())
    search = subprocess.Popen(["sleep", "60"])
    server.starters = {search.pid: begun_at(search.pid)}
    assert not server.is_forgotten(server.used + 800)
    search.kill()
    search.wait()
    assert not server.is_forgotten(server.used + 859)
    assert server.is_forgotten(server.used + 861)
    server.starters = {os.getpid(): begun_at(os.getpid())}
    assert not server.is_forgotten(server.used + 899)
    assert server.is_forgotten(server.used + 901)
    server.retire()
    for end in (server.wake, server.waker):
        os.close(end)


def test_it_is_no_child_of_the_command_and_holds_nothing_of_it(place):
    path = script(place, "print(1)")
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "ballot.preload", path],
        cwd=place,
        env=environment(place),
        pass_fds=[write],
    )
    assert process.wait(30) == 0
    os.close(write)
    assert os.read(read, 1) == b""  # nobody has the other end, so this does not wait
    os.close(read)
    (server,) = preloaders(place)
    assert server.ppid() != os.getpid() and os.getsid(server.pid) != os.getsid(0)
    assert server.cwd() == "/" and server.num_threads() == 1


def test_a_plain_start_is_one_variable_away(place):
    path = script(place, "import os; print(os.getppid())")
    assert run(place, path, BALLOT_PRELOAD="0") == (0, f"{os.getpid()}\n", "")
    assert preloaders(place) == []
    for wrong in ("soon", "-1", "nan"):
        status, out, err = run(place, path, BALLOT_PRELOAD=wrong)
        assert (status, out) == (2, "") and len(err.splitlines()) == 1 and wrong in err


@pytest.mark.parametrize("words", [[], ["no_such.py"]])
def test_a_script_that_is_not_there_is_one_line(place, words):
    done = subprocess.run(
        [sys.executable, "-m", "ballot.preload", *words],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "text, why",
    [
        ("raise ValueError('not so')", "ValueError: not so"),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=[5], daemon=True)"
            ".start()",
            "started a thread",
        ),
        ("import os\nos._exit(3)", "the imports failed"),
    ],
)
def test_what_cannot_be_preloaded_starts_plainly_and_says_so_in_a_line(place, text, why):
    script(place, text, name="heavy.py")
    # What is imported at the top counts; the plain start of this script must not need it.
    path = script(
        place, "import os, sys\nsys.modules['heavy'] = os\nimport heavy\nprint(os.getppid())"
    )
    for _ in range(2):  # the second time it is known, and not tried again
        began = time.monotonic()
        status, out, err = run(place, path)
        assert (status, out) == (0, f"{os.getpid()}\n")
        assert why in err and len(err.splitlines()) == 1 and "starting a new interpreter" in err
    assert time.monotonic() - began < 5 and preloaders(place) == []


def test_a_later_import_that_starts_a_thread_is_left_out(place):
    script(place, "def set_num_threads(n):\n    print('threads', n)", name="torch.py")
    for name in ("scipy", "sklearn", "requests", "PIL"):  # to be quick: they are no packages here
        script(place, "", name=f"{name}.py")
    script(
        place,
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[60], daemon=True).start()",
        name="tqdm.py",
    )
    path = script(
        place,
        "import os, sys\nimport torch\n"
        "print('yaml' in sys.modules, 'tqdm' in sys.modules, os.getppid())",
    )
    status, out, err = run(place, path, OMP_NUM_THREADS="3,2")
    (server,) = preloaders(place)
    assert (status, out, err) == (0, f"threads 3\nTrue False {server.pid}\n", "")
    assert run(place, path, OMP_NUM_THREADS="")[1] == f"True False {server.pid}\n"


@pytest.mark.parametrize("plain", [False, True])
def test_on_another_machine_trials_divide_its_cores(place, plain):
    path = script(place, "import os\nprint(os.environ.get('OMP_NUM_THREADS'))")
    more = {"BALLOT_PRELOAD": "0"} if plain else {}
    at_once = {"1": str(count_cores()), "1000": "1", "many": "None", "0": "None"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        for told, threads in at_once.items():
            assert run(place, path, BALLOT_AT_ONCE=told, **more)[1] == f"{threads}\n"
        assert run(place, path, BALLOT_AT_ONCE="1", OMP_NUM_THREADS="7", **more)[1] == "7\n"
        share = run(place, path, BALLOT_AT_ONCE="1", OMP_NUM_THREADS="", **more)[1]
        assert share == f"{count_cores()}\n"


def test_a_trial_knows_whether_nni_chose_its_gpus(place):
    path = script(
        place, "from ballot.engines.nni.trial import gpus_are_assigned\nprint(gpus_are_assigned())"
    )
    for parent, wanted in (("0", "False"), ("1", "True")):
        words = [
            "sh",
            "-c",
            f'CUDA_VISIBLE_DEVICES=0 "{sys.executable}" -m ballot.preload "$0"; :',
        ]
        done = subprocess.run(
            [*words, path],
            cwd=place,
            capture_output=True,
            text=True,
            env=environment(place, CUDA_VISIBLE_DEVICES=parent),
        )
        assert done.stdout.strip() == wanted


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_users_socket_is_refused(tmp_path):
    path = tmp_path / "socket"
    code = (
        "import os, socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\n"
        "os.seteuid(65534)\ns.listen()\nprint(1, flush=True)\ntime.sleep(20)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(command.NotPreloaded, match="another user"):
            command.connect(path)
        process.kill()


CHANNEL = """
import os
from nni.runtime.trial_command_channel.base import TrialCommandChannel

class Channel(TrialCommandChannel):
    def receive_parameter(self):
        return {"parameter_id": 0, "parameters": {"lr": 0.01}, "parameter_source": "algorithm"}

    def send_metric(self, type, parameter_id, trial_job_id, sequence, value):
        with open(os.path.join(os.environ["NNI_OUTPUT_DIR"], "told"), "a") as file:
            file.write(f"{type} {sequence} {value}\\n")
"""


@pytest.mark.slow
def test_a_real_trial_learns_the_same_as_one_that_was_started_plainly(place):
    (place / "code" / "channel.py").write_text(CHANNEL)
    found = []
    for plain in (False, True):
        home = place / f"plain{plain}"
        home.mkdir()
        nni = {
            "NNI_PLATFORM": "local",
            "NNI_EXP_ID": "e",
            "NNI_TRIAL_JOB_ID": "t",
            "NNI_TRIAL_SEQ_ID": "0",
            "NNI_OUTPUT_DIR": str(home),
            "NNI_SYS_DIR": str(home),
            "NNI_TRIAL_COMMAND_CHANNEL": "import://channel.Channel",
            "PYTHONPATH": f"{ROOT}:{place / 'code'}",
            "OMP_NUM_THREADS": "1",
        }
        words = ["--epochs", "2", "--no_tensorboard", "--out_dir", home / "outputs"]
        status, _, err = run(place, "train.py", *words, plain=plain, cwd=ROOT, **nni)
        assert (status, err) == (0, "")
        csv = (home / "outputs" / "e-000-t.csv").read_bytes()
        result = json.loads((home / "outputs" / "e-000-t" / "result.json").read_text())
        found.append(((home / "told").read_text(), csv, result["score"]))
    assert found[0] == found[1]
    (server,) = preloaders(place)
    assert server.num_threads() == 1
