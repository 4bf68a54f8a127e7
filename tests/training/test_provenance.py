"""What a run says of its making."""

import os
import subprocess

from ballot.training import provenance


def git(folder, *words):
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_commit_is_named_and_a_change_to_it_is_told(tmp_path):
    assert provenance.commit(tmp_path) is None, "no repository"
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag does not stand for the commit")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.commit(tmp_path) == head
    (tmp_path / "a.py").write_text("2\n")
    assert provenance.commit(tmp_path) == f"{head}-dirty"
    (tmp_path / "inner").mkdir()
    assert provenance.commit(tmp_path / "inner") is None, "the repository is somebody else's"


def test_without_git_a_run_is_made_all_the_same(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(tmp_path) is None


def test_the_facts_are_this_machines():
    facts = provenance.machine_facts()
    assert facts["hardware"]["cores"] == len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert abs(facts["hardware"]["memory_gib"] - pages) < 0.06
    assert facts["hardware"]["processor"]
    import torch

    assert torch.__version__.startswith(facts["versions"]["torch"].split("+")[0])
