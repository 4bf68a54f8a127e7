"""From Python: what `search` runs, what it returns, what it raises; a stand-in runs the search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ballot import api
from ballot.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

SEARCH = """
import json, sys
from pathlib import Path

words = sys.argv[1:]
Path("words.json").write_text(json.dumps(words))
print("2 trials done", flush=True)
data = words[words.index("--data_dir") + 1]
if data == "nowhere":
    print("a warning", file=sys.stderr)
    print("error: data_dir: nowhere is not there; name a folder", file=sys.stderr)
    sys.exit(2)
if data == "dull":
    sys.exit(1)
if data == "slow":
    import time
    print("waiting", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
vote = Path(words[words.index("--vote_dir") + 1])
vote.mkdir(exist_ok=True)
run = Path("outputs", "r1")
run.mkdir(parents=True, exist_ok=True)
(run / "best.pt").write_text("weights")
Path("report.html").write_text("page")
(vote / "submission.csv").write_text("id,label\\n007,cat\\n")
(vote / "soft.csv").write_text("id,cat,dog\\n007,0.75,0.25\\nNA,0.5,0.5\\n")
members = [
    {"name": "r1", "weight": 1.0, "files": ["../outputs/r1.csv"]},
    {"name": "r2", "weight": 0.0, "files": ["../outputs/r2.csv"]},
]
scores = {"answer": "vote", "held_out": {"metric": "acc", "vote": 0.75, "rows": 46}}
record = {"members": members, "classes": ["cat", "dog"], "scores": scores}
(vote / "ensemble.json").write_text(json.dumps(record))
"""

PREDICT = """
import csv, sys
from pathlib import Path

model, listed, flag, out = sys.argv[1:5]
assert flag == "--out"
rows = list(csv.DictReader(open(listed)))
lines = [f"{row['id']},0.25,0.75" for row in rows if "bad" not in row["id"]]
if not lines:
    sys.exit("error: none of 1 images can be read")
for row in rows:
    if "bad" in row["id"]:
        print(f"skipped: {row['path']} is no image", file=sys.stderr)
Path(out).write_text("id,cat,dog\\n" + "\\n".join(lines) + "\\n")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder, and stand-ins of the scripts that leave what the scripts leave."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "search.py").write_text(SEARCH)
    (scripts / "predict.py").write_text(PREDICT)
    monkeypatch.setattr(api, "ROOT", scripts)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def words_of(project: Path) -> str:
    return (project / "words.json").read_text().replace('"', "").replace(",", "")


def test_a_search_returns_what_its_files_tell(project, capsys):
    answer = api.search("photos", max_duration="1h")
    assert (answer.metric, answer.accuracy, answer.rows) == ("accuracy", 0.75, 46)
    assert answer.error == pytest.approx(0.0628, abs=1e-4)
    assert "accuracy 0.750 ± 0.063 on 46 validation images" in str(answer)
    assert answer.classes == ["cat", "dog"]
    assert answer.probabilities.index.tolist() == ["007", "NA"]
    assert answer.probabilities.loc["007", "cat"] == 0.75
    assert answer.submission == Path("ensemble/submission.csv")
    assert answer.report == project / "report.html"
    assert [path.resolve() for path in answer.weights] == [project / "outputs/r1/best.pt"]
    assert "2 trials done" in capsys.readouterr().out


def test_options_become_flags(project):
    api.search(
        Path("photos"),
        preset="fast",
        model=None,
        epochs=3,
        metrics=["acc", "f1_macro"],
        criterion_args={"gamma": 2},
        tensorboard=False,
        ema=0.5,
        quiet=True,
    )
    assert words_of(project) == (
        "[--data_dir photos --preset fast --vote_dir ensemble --epochs 3 --metrics acc f1_macro "
        "--criterion_args {\\gamma\\: 2} --no_tensorboard --ema 0.5]"
    )


@pytest.mark.usefixtures("project")
def test_a_second_search_leaves_the_first_answer_alone():
    first, second = api.search("photos"), api.search("photos")
    assert (first.folder, second.folder) == (Path("ensemble"), Path("ensemble-2"))
    assert api.load_answer("ensemble").accuracy == 0.75


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "data, message",
    [
        ("nowhere", "data_dir: nowhere is not there; name a folder"),
        ("dull", "search.py: ended with status 1, without an answer"),
    ],
)
def test_what_is_wrong_is_an_exception_with_its_one_line(data, message):
    with pytest.raises(UserError) as caught:
        api.search(data, quiet=True)
    assert str(caught.value) == message


def test_a_folder_without_a_vote_is_no_answer(project):
    with pytest.raises(UserError, match="holds no vote"):
        api.load_answer(project)


def test_images_are_predicted_by_their_paths(project):
    answer = api.search("photos", quiet=True)
    for name in ("007.jpg", "bad.jpg"):
        (project / name).write_text("")
    predictions = answer.predict(["007.jpg", Path("bad.jpg")])
    assert predictions.classes.to_dict() == {"007.jpg": "dog"}
    pd.testing.assert_frame_equal(
        predictions.probabilities,
        pd.DataFrame({"cat": [0.25], "dog": [0.75]}, pd.Index(["007.jpg"], name="id")),
    )
    assert predictions.unreadable == [f"{project / 'bad.jpg'} is no image"]
    assert answer.predict([]).classes.empty
    with pytest.raises(UserError, match="none of 1 images"):
        answer.predict("bad.jpg")
    with pytest.raises(UserError, match=r"gone\.jpg: is not there"):
        answer.predict("gone.jpg")


@pytest.mark.usefixtures("project")
def test_an_interrupt_reaches_the_search_and_the_caller():
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from ballot import api\n"
        f"api.ROOT = api.Path({str(api.ROOT)!r})\n"
        "class Out:\n"
        "    def write(self, text):\n"
        "        if 'waiting' in text: os.kill(os.getpid(), signal.SIGINT)\n"
        "    def flush(self): pass\n"
        "sys.stdout = Out()\n"
        "try: api.search('slow')\n"
        "except KeyboardInterrupt: sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 7


@pytest.mark.parametrize("before", ["", "import ballot.search.status; "])
def test_the_function_is_imported_from_the_package_whatever_was_imported_before(before):
    code = (
        f"{before}import ballot, sys\n"
        "from ballot import search\n"
        "assert 'torch' not in sys.modules\n"
        "try: search('photos', vote_dir='v', quiet=True, max_duration='no time')\n"
        "except ballot.errors.UserError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("command line: ")
