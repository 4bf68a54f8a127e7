"""A trial that trains nothing and leaves what a trial leaves, for tests of searches."""

import json
import time

import numpy as np
from in_process_engine import InProcessEngine

from ballot.engines.interface import Launch, Plan
from ballot.search.status import table_of
from ballot.search.supervise import follow
from ballot.search.time_budget import Budget
from ballot.vote.ballots import write_ballot

CLASSES = ["cat", "dog"]
EPOCHS = 3
LAUNCH = Launch()


def fake_trial(record, search):
    """Train for `epochs`; `score` is what is reached. What `does` says else: hang or crash."""
    values = {"epochs": EPOCHS, "score": 0.9, "does": "", **record.parameters}
    run = search.plan().outputs / f"{search.id}-{record.sequence:03d}-{record.id}"
    run.mkdir(parents=True, exist_ok=True)
    result = run / "result.json"
    before = json.loads(result.read_text()) if result.exists() else {}
    facts = {"run": run.name, "monitor": "val_acc", "classes": CLASSES, "epochs": 0, **before}
    (run / "config.json").write_text(json.dumps({"values": {"seed": 1, **record.parameters}}))
    if values["does"] == "crash":
        raise OSError("nowhere")
    status = "stopped"
    try:
        while facts["epochs"] < values["epochs"]:
            facts["epochs"] += 1
            facts["score"] = values["score"] * facts["epochs"] / values["epochs"]
            result.write_text(json.dumps({**facts, "status": "running"}))
            yield facts["score"]
            while values["does"] == "hang":
                yield None
        status = "done"
        return facts["score"]
    finally:  # a generator that is closed is a trial that is told to end
        answer(run, facts.get("score", 0.5), seed=record.sequence)
        result.write_text(json.dumps({**facts, "status": status}))


def answer(run, score, seed):
    """Write predictions of 40 rows of which about the share `score` is right."""
    random = np.random.default_rng(seed)
    labels = np.arange(40) % 2
    for path, named in ((run / "val.csv", True), (run.with_name(f"{run.name}.csv"), False)):
        said = np.where(random.random(40) < score, labels, 1 - labels)
        probs = np.where(said[:, None] == np.arange(2), 0.8, 0.2)
        ids = [f"{path.stem[:3] if named else 'test'}{k}" for k in range(40)]
        words = [CLASSES[k] for k in labels] if named else None
        write_ballot(path, ids, CLASSES, probs, words)


def begin(folder, configurations, **changes):
    """Start a search of these configurations, and return it with its engine."""
    plan = {
        "settings": None,
        "command": "python3 train.py",
        "code": folder,
        "outputs": folder / "outputs",
        "max_trials": len(configurations),
        "max_seconds": None,
        "concurrency": 1,
        "maximize": True,
        **changes,
    }
    engine = InProcessEngine(fake_trial, configurations)
    return engine, engine.start(Plan(**plan), LAUNCH, {"config": "x.yml"})


def see(search, budget=None, every=0.0):
    """Follow a search to its end; return the end and the table."""
    plan = search.plan()
    results = table_of(search, plan)
    budget = budget or Budget(plan.max_seconds, time.time())
    return follow(search, plan, results, budget, LAUNCH, every=every), results
