"""Machines that are lost and come back, on a training service with NNI's interface and no NNI."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ballot.engines.nni import guard

nni_node = importlib.util.find_spec("nni_node")
pytestmark = pytest.mark.skipif(nni_node is None, reason="NNI is not installed")
NODE = Path(guard.__file__).with_name("node")

SSH = """#!/bin/sh
for last; do :; done
case "$*" in *" -R "*) echo "Allocated port 4242 for remote forward to 127.0.0.1:1" >&2
                       exec sleep 600;; esac
exec sh -c "$last"
"""

# What RemoteTrainingServiceV3 and V3asV1 have; a worker cannot be launched while it is `down`.
SERVICE = """
const { EventEmitter } = require('node:events');
const { mendPlacement, mendService } = require(process.env.NODE + '/fleet.js');
const { setTimeout: sleep } = require('node:timers/promises');
const down = new Set(), ends = [], finals = [], started = [], commands = [];
let ahead = 0;
const now = Date.now;
Date.now = () => now() + ahead; // a minute passes when a test says so
const exports_ = { RemoteTrainingServiceV3: class {
    config = { platform: 'remote', machineList: [{ host: 'gpu1' }, { host: 'gpu2' }] };
    emitter = new EventEmitter();
    server = { start: async () => undefined, channels: new Map() };
    uploadedDirs = new Set();
    workers = [];
    workersByEnv = new Map();
    workersByTrial = new Map();
    async start() {}
    async stop() {}
    async uploadDirectory() {}
    async restartWorker() {}
    emitEnvUpdate() {}
    async stopTrial(id) { this.emitter.emit('trial_stop', id, 1, null); }
    async createTrial(envId, command, directory, sequence, id) {
        started.push([id, envId]);
        commands.push(command);
        this.workersByTrial.set(id, this.workersByEnv.get(envId));
        return id;
    }
    async launchWorker(config) {
        const index = ++this.lastWorkerIndex;
        const worker = { envId: `remote-worker${index}`, channel: null };
        this.workers.push(worker);
        this.workersByEnv.set(worker.envId, worker);
        if (down.has(config.host)) {
            throw new Error(`${config.host} is switched off`);
        }
        return worker;
    }
    stopWorker(worker) {
        this.workers = this.workers.filter(each => each !== worker);
        this.workersByTrial.forEach((each, id) => {
            if (each === worker) {
                this.emitter.emit('trial_stop', id, 1, null);
                this.workersByTrial.delete(id);
            }
        });
    }
    onTrialEnd(callback) { this.emitter.on('trial_stop', callback); }
    onMetric(callback) { this.emitter.on('metric', callback); }
} };
mendService(exports_, '/nowhere');
const service = new exports_.RemoteTrainingServiceV3();
const compat = { V3asV1: class {
    v3 = service;
    trialJobs = {};
    schedule() { return 'as shipped'; }
    async submitTrialJob(form) { return form; }
} };
mendPlacement(compat);
const manager = new compat.V3asV1(service.config);
service.onTrialEnd((id, time, code) => ends.push([id, code]));
service.onMetric((id, metric) => finals.push([id, JSON.parse(metric).type]));
async function begin(id, sequence = 0) {
    const envId = manager.schedule();
    if (envId !== null) {
        manager.trialJobs[id] = { id, status: 'RUNNING' };
        await service.createTrial(envId, 'train', 'code', sequence, id);
    }
    return envId;
}
const end = (id, code) => service.emitter.emit('trial_stop', id, 2, code);
const report = (id, type) => service.emitter.emit('metric', id, JSON.stringify({ type }));
async function until(holds) {
    for (let round = 0; round < 100 && !holds(); round++) {
        await sleep(100);
    }
}
const states = () => JSON.parse(require('node:fs').readFileSync(
    `${process.env.FOLDER}/fleet-test/machines.json`)).map(each => `${each.name} ${each.state}`);
(async () => {
    await service.start();
    const told = {};
    BODY
    console.log(JSON.stringify({ ...told, ends, finals, started, states: states(),
        jobs: manager.trialJobs }));
    process.exit();
})();
"""


def play(tmp_path, body):
    """Run `body` with two machines that are up; return what was told, started and ended."""
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    (tmp_path / "fleet-test").mkdir()
    machines = [
        {"name": name, "ssh": [str(ssh), name], "python": sys.executable, "slots": 1}
        for name in ("gpu1", "gpu2")
    ]
    script = tmp_path / "main.js"
    script.write_text(SERVICE.replace("BODY", body))
    command = [
        Path(nni_node.origin).parent / "node",
        script,
        "--experiment-id",
        "fleet-test",
        "--experiments-directory",
        tmp_path,
        "--port",
        "1",
    ]
    told = {"machines": machines, "running": str(tmp_path / "running"), "outDir": "$HOME/there"}
    names = {
        **os.environ,
        "BALLOT_REMOTE": json.dumps(told),
        "NODE": str(NODE),
        "FOLDER": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=names, timeout=60
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_machine_has_one_trial_and_a_third_waits(tmp_path):
    told = play(
        tmp_path,
        "told.where = [await begin('a'), await begin('b'), await begin('c')];"
        "end('b', 0); told.then = await begin('c');"
        "told.commands = commands;",
    )
    assert told["commands"] == ["BALLOT_AT_ONCE=1 train"] * 3
    assert told["where"] == ["remote-worker1", "remote-worker2", None]
    assert told["then"] == "remote-worker2" and told["ends"] == [["b", 0]]
    assert told["states"] == ["gpu1 up", "gpu2 up"]


def test_a_lost_trial_goes_on_where_it_was_when_its_machine_is_back(tmp_path):
    told = play(
        tmp_path,
        "await begin('a'); await begin('b');"
        "service.restartWorker(service.workers.find(w => w.envId.endsWith(2)));"
        "told.job = { ...manager.trialJobs.b };"
        "await until(() => started.length === 3);"
        "end('b', 0); end('a', 0);",
    )
    assert told["job"]["status"] == "WAITING"
    assert told["started"] == [
        ["a", "remote-worker1"],
        ["b", "remote-worker2"],
        ["b", "remote-worker2"],
    ]
    assert sorted(told["ends"]) == [["a", 0], ["b", 0]]


LOST = """
    await begin('a'); await begin('b');
    down.add('gpu2');
    service.restartWorker(service.workers.find(w => w.envId.endsWith(2)));
    await until(() => states()[1] === 'gpu2 out');
"""


def test_a_lost_trial_goes_elsewhere_after_a_minute_and_before_new_ones(tmp_path):
    told = play(
        tmp_path,
        LOST + "end('a', 0); told.at_once = await begin('c'); end('c', 0);"
        "ahead += 61000; told.later = await begin('d');"
        "await until(() => started.length === 4);"
        "end('b', 0);",
    )
    assert told["at_once"] == "remote-worker1" and told["later"] is None
    assert told["started"][3] == ["b", "remote-worker1"]
    assert told["ends"] == [["a", 0], ["c", 0], ["b", 0]]
    assert told["jobs"]["b"]["url"].startswith("gpu1:~/") and told["states"][1] == "gpu2 out"


def test_a_trial_that_goes_elsewhere_takes_the_checkpoint_along_that_came_home(tmp_path):
    kept = tmp_path / "running/fleet-test-007-b"
    kept.mkdir(parents=True)
    for name in ("last.pt", "history.csv", "result.json"):
        (kept / name).write_text(name)
    play(
        tmp_path,
        LOST.replace("await begin('b');", "await begin('b', 7);") + "end('a', 0); ahead += 61000;"
        "await until(() => started.length === 3);",
    )
    there = tmp_path / "there/fleet-test-007-b"
    assert {path.name for path in there.iterdir()} == {"last.pt", "history.csv", "result.json"}
    assert (there / "last.pt").read_text() == "last.pt"


def test_a_trial_whose_last_word_had_come_has_ended_well_and_says_it_once(tmp_path):
    told = play(
        tmp_path,
        "await begin('a'); report('a', 'PERIODICAL'); report('a', 'FINAL');"
        "report('a', 'FINAL');"
        "service.restartWorker(service.workers.find(w => w.envId.endsWith(1)));"
        "await sleep(1500);",
    )
    assert told["finals"] == [["a", "PERIODICAL"], ["a", "FINAL"]]
    assert told["ends"] == [["a", 0]] and len(told["started"]) == 1


def test_trials_that_had_ended_are_not_lost_with_their_machine(tmp_path):
    told = play(
        tmp_path,
        "await begin('a'); end('a', 1);"
        "service.restartWorker(service.workers.find(w => w.envId.endsWith(1)));"
        "await sleep(1500);",
    )
    assert told["ends"] == [["a", 1]] and len(told["started"]) == 1


def test_a_lost_trial_can_be_cancelled(tmp_path):
    told = play(
        tmp_path,
        LOST + "await service.stopTrial('b'); ahead += 61000; end('a', 0);await sleep(1500);",
    )
    assert told["ends"] == [["b", None], ["a", 0]] and len(told["started"]) == 2


def test_a_resumed_trial_keeps_its_id_and_waits_for_its_machine(tmp_path):
    told = play(
        tmp_path,
        "down.add('gpu2');"
        "service.restartWorker(service.workers.find(w => w.envId.endsWith(2)));"
        "await until(() => states()[1] === 'gpu2 out');"
        "await manager.submitTrialJob({ id: 'r', envId: 'remote-worker2' });"
        "told.id = await service.createTrial('remote-worker2', 't', 'c', 3, 'r');"
        "ahead += 61000; await until(() => started.length === 1);",
    )
    assert told["id"] == "r" and told["started"] == [["r", "remote-worker1"]]
