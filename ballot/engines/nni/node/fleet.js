/*
 * The machines of a search and the trials on them: which are up, what runs where, and what is lost
 * with one and runs again. A part of remote.js.
 */
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

const { call, closeTunnels, hold, machines, need, option, sendFolder, settings, tunnelTo, warn } =
    require('./ssh.js');

const RETRY_MS = 15000; // between two attempts to bring a machine back
const OTHERS_MS = 60000; // how long the first machine waits for the others to begin with
const OWN_MS = 60000; // how long a lost trial waits for its machine, where its checkpoint is
const START_MS = 180000; // for a machine to be ready
const STOP_MS = 30000; // for the keepers to end their trials
const SILENT_MS = 20000; // without an answer to NNI's pings, which come every 5 s

async function quietly(action) {
    try {
        return await action();
    } catch (error) {
        warn(error.stack ?? String(error));
        return null;
    }
}

/** One entry of the configuration's list, and what has become of it. */
class Place {
    constructor(machine, index) {
        this.machine = machine;
        this.index = index;
        this.tunnel = tunnelTo(machine);
        this.worker = null; // while trials can run there
        this.state = { name: machine.name, state: 'coming', since: Date.now(), why: '' };
    }

    get envId() {
        return `remote-worker${this.index + 1}`; // the same after each recovery and resumption
    }

    /** When NNI's keeper there last answered. */
    get heard() {
        return this.worker?.channel?.connection?.ballotHeard ?? Date.now();
    }
}

/** All machines of a search, and the trials on them. */
class Fleet {
    constructor(service) {
        this.service = service;
        this.places = settings.machines.map((machine, index) => new Place(machine, index));
        this.trials = new Map(); // id -> {how, place}: those that have not ended
        this.lost = new Map(); // id -> since when it waits for a machine
        this.known = new Set(); // ids that were started once
        this.finals = new Set(); // ids whose final result has come
        this.losing = false;
        this.stopping = false;
        this.moved = () => undefined;
        this.write(); // what stands there is an earlier manager's
    }

    say(place, state, why = '') {
        if (place.state.state === state && place.state.why === why) {
            return;
        }
        const since = place.state.state === state ? place.state.since : Date.now();
        place.state = { name: place.machine.name, state, since, why };
        warn(`${place.machine.name} is ${state}${why ? `: ${why}` : ''}`);
        this.write();
    }

    /** Write down how the machines are, for search.py. */
    write() {
        const file = path.join(option('experiments-directory'), option('experiment-id'),
            'machines.json');
        try {
            fs.writeFileSync(`${file}.new`, JSON.stringify(this.places.map(each => each.state)));
            fs.renameSync(`${file}.new`, file);
        } catch (error) {
            warn(error.message);
        }
    }

    /** Bring a machine up, however long that takes. */
    async bring(place) {
        while (!this.stopping) {
            try {
                await this.launch(place);
                this.say(place, 'up');
                this.service.emitEnvUpdate();
                return;
            } catch (error) {
                this.say(place, 'out', error.message.trim().split('\n').at(-1));
                await sleep(RETRY_MS);
            }
        }
    }

    async launch(place) {
        const { service } = this;
        const config = service.config.machineList[place.index];
        await place.tunnel.open();
        await call(place.machine, 'sweep', option('experiment-id'), place.envId);
        service.server.channels.delete(String(place.index + 1)); // of the keeper that was there
        service.lastWorkerIndex = place.index;
        machines.set(config, place.machine);
        const coming = parent.launchWorker.call(service, config);
        const worker = service.workers.pop(); // no trial is for it until it is ready
        worker.ballotPlace = place;
        worker.ballotLose = why => this.lose(worker, why);
        worker.whenGone = new Promise((_, reject) => { worker.giveUp = reject; });
        worker.whenGone.catch(() => undefined);
        const late = sleep(START_MS, null, { ref: false }).then(() => {
            throw new Error(`it did not start in ${START_MS / 1000} s`);
        });
        const ready = async () => {
            await Promise.race([coming, late]);
            for (const name of service.uploadedDirs) {
                await worker.upload(name, service.ballotTarball(name));
            }
        };
        try {
            await Promise.race([ready(), worker.whenGone]);
        } catch (error) {
            this.forget(worker);
            throw error;
        } finally {
            late.catch(() => undefined);
        }
        place.worker = worker;
        service.workers.push(worker);
    }

    /** Let go of a worker; its running trials are lost. */
    forget(worker) {
        this.losing = true;
        try {
            parent.stopWorker.call(this.service, worker, false);
        } finally {
            this.losing = false;
        }
    }

    lose(worker, why) {
        const place = worker.ballotPlace;
        worker.giveUp(new Error(why));
        if (this.stopping || place.worker !== worker) {
            return;
        }
        place.worker = null;
        this.say(place, 'out', place.tunnel.port === null ? place.tunnel.why : why);
        this.forget(worker);
        this.bring(place);
    }

    running(place) {
        return Array.from(this.trials.values()).filter(trial => trial.place === place).length;
    }

    isFree(place) {
        return place.worker !== null && Date.now() - place.heard < SILENT_MS
            && this.running(place) < place.machine.slots;
    }

    /** The least busy machine that has a slot, or nothing. */
    leastBusy() {
        const load = place => this.running(place) / place.machine.slots;
        return this.places.filter(place => this.isFree(place))
            .sort((a, b) => load(a) - load(b))[0] ?? null;
    }

    /** Where a new trial may go: lost ones that have waited long enough come first. */
    placeForNew() {
        const waiting = Array.from(this.lost.values()).filter(since => isDue(since)).length;
        const free = this.places.filter(place => this.isFree(place))
            .reduce((sum, place) => sum + place.machine.slots - this.running(place), 0);
        return free > waiting ? this.leastBusy() : null;
    }

    loseTrial(id) {
        const trial = this.trials.get(id);
        trial.place = null;
        this.lost.set(id, Date.now());
        this.moved(id, null);
    }

    /** Start lost trials again: where they were, or elsewhere once they have waited. */
    async placeLost() {
        for (const [id, since] of this.lost) {
            const trial = this.trials.get(id);
            const own = this.places.find(place => place.envId === trial.how[0]);
            const place = own && this.isFree(own) ? own : isDue(since) ? this.leastBusy() : null;
            if (place !== null) {
                this.lost.delete(id);
                this.moved(id, place);
                warn(`trial ${id} was lost with ${own?.machine.name ?? 'its machine'}; `
                    + `it goes on at ${place.machine.name}`);
                if (place !== own) {
                    await quietly(() => this.sendCheckpoint(place, ...trial.how.slice(3)));
                }
                await this.create(place.envId, ...trial.how.slice(1));
            }
        }
    }

    /** Send what collect.py has kept of a trial's run to the machine where it goes on. */
    async sendCheckpoint(place, sequenceId, id) {
        const run = [option('experiment-id'), String(sequenceId).padStart(3, '0'), id].join('-');
        const folder = path.join(settings.running ?? '', run);
        if (settings.running && fs.existsSync(path.join(folder, 'result.json'))) {
            await sendFolder(place.machine, folder, `${settings.outDir}/${run}`);
            warn(`trial ${id} has its checkpoint there`);
        }
    }

    /** Start a trial; one that was started before is kept until a machine takes it. */
    async create(envId, command, directory, sequenceId, id) {
        const place = this.places.find(each => each.envId === envId) ?? null;
        const worker = place?.worker ?? null;
        const how = [envId, command, directory, sequenceId, id];
        if (id === undefined) { // unguarded: NNI names it, and nobody can start it again
            return worker && parent.createTrial.call(this.service, ...how);
        }
        this.trials.set(id, { how, place });
        // By it the trials of a machine divide its cores (ballot/preload/command.py).
        const told = [envId, `BALLOT_AT_ONCE=${place?.machine.slots} ${command}`, ...how.slice(2)];
        const created = worker && await quietly(() =>
            Promise.race([parent.createTrial.call(this.service, ...told), worker.whenGone]));
        if (created) {
            this.known.add(id);
        } else if (!this.known.has(id)) {
            this.trials.delete(id);
        } else if (!this.lost.has(id)) {
            this.loseTrial(id);
        }
        return this.known.has(id) ? id : null;
    }

    async watch() {
        while (!this.stopping) {
            await sleep(1000);
            await quietly(() => this.placeLost());
            for (const place of this.places.filter(each => each.worker !== null)) {
                const silent = Date.now() - place.heard;
                this.say(place, silent > SILENT_MS ? 'silent' : 'up');
            }
        }
    }
}

const isDue = since => Date.now() - since > OWN_MS;
const parent = {}; // the methods of NNI's that are wrapped
const fleets = new WeakMap(); // by NNI's training service

function fleetOf(service) {
    if (!fleets.has(service)) {
        fleets.set(service, new Fleet(service));
    }
    return fleets.get(service);
}

function mendService(exports, root) {
    const proto = exports.RemoteTrainingServiceV3?.prototype;
    const names = ['start', 'stop', 'uploadDirectory', 'createTrial', 'stopTrial', 'onTrialEnd',
        'onMetric', 'launchWorker', 'stopWorker', 'restartWorker', 'emitEnvUpdate'];
    need(proto, ...names);
    names.forEach(name => { parent[name] = proto[name]; });
    const tarball = () => require(path.join(root, 'common/tarball.js'));
    proto.ballotTarball = name => tarball().getTarballPath(name);
    proto.ballotEnvironments = function () {
        const { places } = fleetOf(this);
        return places.map(
            each => ({ ...each.worker?.env, id: each.envId, host: each.machine.name }));
    };

    /** Begin with the machines that come; the others join when they do. */
    proto.start = async function () {
        const fleet = fleetOf(this);
        await this.server.start();
        const coming = fleet.places.map(place => fleet.bring(place));
        await Promise.race(coming);
        await Promise.race([Promise.all(coming), sleep(OTHERS_MS, null, { ref: false })]);
        fleet.watch();
        return this.ballotEnvironments();
    };
    proto.uploadDirectory = async function (name, folder) {
        const tar = await tarball().createTarball(name, folder);
        this.uploadedDirs.add(name);
        await Promise.all(this.workers.map(worker => worker.upload(name, tar).catch(
            error => fleetOf(this).lose(worker, error.message))));
    };
    proto.restartWorker = async function (worker) {
        fleetOf(this).lose(worker, 'the connection was lost');
    };
    proto.emitEnvUpdate = function () {
        this.emitter.emit('env_update', this.ballotEnvironments());
    };
    proto.stop = async function () {
        fleetOf(this).stopping = true;
        await Promise.race([parent.stop.call(this), sleep(STOP_MS, null, { ref: false })]);
        closeTunnels();
    };
    mendTrialsOf(proto);
}

function mendTrialsOf(proto) {
    proto.createTrial = function (...how) {
        return fleetOf(this).create(...how);
    };
    proto.stopTrial = async function (id) {
        const fleet = fleetOf(this);
        if (fleet.lost.delete(id)) {
            this.emitter.emit('trial_stop', id, Date.now(), null);
            return;
        }
        const gone = this.workersByTrial.get(id)?.whenGone ?? Promise.resolve();
        await Promise.race([parent.stopTrial.call(this, id), gone.catch(() => undefined),
            sleep(STOP_MS, null, { ref: false })]);
    };
    /** Tell NNI of an end that is one: not of a trial that is lost, nor twice of any. */
    proto.onTrialEnd = function (callback) {
        const fleet = fleetOf(this);
        parent.onTrialEnd.call(this, (id, timestamp, exitCode) => {
            if (fleet.losing && !fleet.trials.has(id)) {
                return undefined; // it had ended before
            }
            if (fleet.losing && !fleet.finals.has(id) && !fleet.stopping) {
                fleet.loseTrial(id);
                return undefined;
            }
            fleet.trials.delete(id);
            return callback(id, timestamp, fleet.losing && fleet.finals.has(id) ? 0 : exitCode);
        });
    };
    /** A second final result of a trial that ran again would end the tuner (#5689). */
    proto.onMetric = function (callback) {
        const fleet = fleetOf(this);
        parent.onMetric.call(this, (id, metric) => {
            const isFinal = /"type": ?"FINAL"/.test(metric);
            if (isFinal && fleet.finals.has(id)) {
                return undefined;
            }
            if (isFinal) {
                fleet.finals.add(id);
            }
            return callback(id, metric);
        });
    };
}

// ---------------------------------------------------------------- placement

function mendPlacement(exports) {
    const { V3asV1 } = exports;
    need(V3asV1?.prototype, 'schedule', 'submitTrialJob');
    exports.V3asV1 = class extends V3asV1 {
        constructor(config) {
            super(config);
            if (!String(config.platform).startsWith('remote')) {
                return;
            }
            hold('placement', () => {
                need(this.v3, 'ballotEnvironments');
                this.ballotFleet = fleetOf(this.v3);
                this.ballotFleet.moved = (id, place) => this.#move(id, place);
            });
        }

        schedule() {
            return this.ballotFleet ? this.ballotFleet.placeForNew()?.envId ?? null
                : super.schedule();
        }

        /** A resumed trial keeps its id wherever it runs, and waits for its machine. */
        async submitTrialJob(form) {
            if (this.ballotFleet && form.id) {
                this.ballotFleet.known.add(form.id);
                const ids = this.ballotFleet.places.map(place => place.envId);
                const envId = ids.includes(form.envId) ? form.envId : ids[0];
                return super.submitTrialJob({ ...form, envId });
            }
            return super.submitTrialJob(form);
        }

        #move(id, place) {
            const trial = this.trialJobs[id];
            if (trial === undefined) {
                return;
            }
            trial.status = 'WAITING';
            trial.submitTime = Date.now();
            if (place !== null) {
                const folder = `~/nni-experiments/${option('experiment-id')}/environments`;
                trial.envId = place.envId;
                trial.url = `${place.machine.name}:${folder}/${place.envId}/trials/${id}`;
            }
        }
    };
}

module.exports = { mendPlacement, mendService };
