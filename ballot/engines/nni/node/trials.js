/*
 * What NNI 3.0 does to trials that crash, that are ended and that are resumed, mended in its
 * running manager. A preload like guard.js, which has to come after this one:
 *
 *     NODE_OPTIONS="--require=trials.js --require=guard.js"
 *
 *   again     a trial that crashed or was killed from outside runs once more (NNI: it is lost),
 *             with the same id, parameters and folder, so that it goes on from its last epoch
 *   together  all trials that are ended are told so at once (NNI: one after the other), and while
 *             they can still report (NNI: seconds after it has closed, so that a report crashes)
 *   early     a trial that the assessor stopped is recorded as EARLY_STOPPED (NNI: as cancelled by
 *             a person, because it marks the trial only once that has ended)
 *   patience  a trial has 40 s to write what it has before it is killed (NNI: 5 s)
 *   results   the tuner hears of a trial's result before its end (NNI: after it, where the disk is
 *             busy with the result, and NNI's own TPE dies of that)
 *   resumable what runs when a search is stopped is not recorded as ended (NNI: where the disk is
 *             busy it may be, and is not resumed)
 *   files     the files that a trial writes to are closed here (NNI: 480 trials are its limit)
 *   tuner     a tuner on a busy machine has a minute to start (NNI: 10 s, then the search is over)
 *   numbers   a resumed search goes on counting its trials (NNI: starts at 1 again)
 *   starter   with BALLOT_STARTER=pid the manager ends where that process, a search.py, is killed
 *             before it has written search.json: nobody would know of the search that goes on
 *   posted    with BALLOT_TRIALS=n the manager runs trials that are posted to it, n in all, and asks
 *             the tuner for none; of those that were interrupted it resumes the ids in BALLOT_AGAIN
 *
 * A part whose target is not found, as in another version of NNI, leaves NNI as it is.
 */
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

const { letGoOfLogs } = require('./keeper.js'); // which does nothing else in a manager

const PAUSE_MS = 1000; // NNI first has to let go of the devices of the trial that ended
const PATIENCE_MS = 40000;
const TUNER_MS = 60000;
const LOOK_MS = 500;
const SHUTDOWN_MS = 10000;
const BAD_INPUT = 2; // the exit status of train.py where a second attempt would fail alike
const POSTED = Number(process.env.BALLOT_TRIALS ?? 0);
const AGAIN = (process.env.BALLOT_AGAIN ?? '').split(',');
const MEANT = ['SIGINT', 'SIGTERM', 'SIGHUP']; // a person ended it, and means it
const storing = new Map(); // id -> the end of storing what the trial has reported
let isStopping = false; // the whole search

/** Whether a trial that was interrupted is to go on when its search is resumed. */
function isWanted(job) {
    return POSTED === 0 || AGAIN.includes(job.trialJobId);
}

function warn(message) {
    console.error(`[ballot trials] ${message}`); // nnictl_stderr.log, where search.py reads it
}

function need(target, ...methods) {
    const missing = methods.filter(name => typeof target?.[name] !== 'function');
    if (missing.length > 0) {
        throw new Error(`this version of NNI has no ${missing.join(', ')}`);
    }
}

/** Apply one part; an exception of ours must never reach the manager. */
function attempt(part, apply) {
    try {
        apply();
    } catch (error) {
        warn(`'${part}' is not in hold: ${error.message}`);
    }
}

// ---------------------------------------------------------------- again

function mendTrials(exports) {
    const { V3asV1 } = exports;
    need(V3asV1?.prototype, 'submitTrialJob', 'cancelTrialJob');
    exports.V3asV1 = class extends V3asV1 {
        constructor(config) {
            super(config);
            attempt('again', () => runCrashedOnesAgain(this.v3));
        }

        cancelTrialJob(id, isEarlyStopped) {
            if (isEarlyStopped && this.trialJobs?.[id] !== undefined) {
                this.trialJobs[id].isEarlyStopped = true;
            }
            return super.cancelTrialJob(id, isEarlyStopped);
        }

        /**
         * The manager reads what is true now. An end is true once all reports have been heard, and
         * what was ended because the search is stopped goes on when it is resumed.
         */
        async getTrialJob(id) {
            const job = { ...await super.getTrialJob(id) };
            if (isStopping && job.status === 'USER_CANCELED') {
                job.status = 'RUNNING';
            }
            if (!['RUNNING', 'WAITING'].includes(job.status)) {
                await storing.get(id);
                storing.delete(id);
            }
            return job;
        }
    };
}

/**
 * Start a trial a second time instead of telling NNI of its end.
 *
 * It has to be one whose parameters are bound to its id, which is the guard's work: the guard
 * wraps this `createTrial` and names the id, NNI by itself does not.
 */
function runCrashedOnesAgain(v3) {
    need(v3, 'createTrial', 'stopTrial', 'stop', 'onTrialEnd');
    const [create, stopTrial, stop, onTrialEnd] =
        ['createTrial', 'stopTrial', 'stop', 'onTrialEnd'].map(name => v3[name].bind(v3));
    const started = new Map(); // id -> how it was started
    const closed = new Set(); // ids that were ended on purpose, or had their second run
    const ended = new Set(); // ids that were ended on purpose
    let stopping = false;

    const mayRunAgain = (id, exitCode) => !stopping && !closed.has(id) && started.has(id)
        && exitCode !== 0 && exitCode !== BAD_INPUT && (exitCode !== null || wasKilled(v3, id));

    async function runAgain(id, exitCode) {
        closed.add(id);
        keepWords(v3, id);
        warn(`trial ${id} ${exitCode === null ? 'was killed' : `crashed (exit ${exitCode})`}; `
            + 'it runs once more');
        await sleep(PAUSE_MS);
        try {
            return !stopping && !ended.has(id) && await create(...started.get(id)) !== null;
        } catch (error) {
            warn(error.stack);
            return false;
        }
    }

    v3.createTrial = async (...how) => {
        const id = await create(...how);
        if (id !== null && how[4] === id) {
            started.set(id, how);
        }
        return id;
    };
    v3.stopTrial = id => {
        closed.add(id);
        ended.add(id);
        return stopTrial(id);
    };
    v3.stop = () => {
        stopping = true;
        return stop();
    };
    v3.onTrialEnd = callback => onTrialEnd(async (id, timestamp, exitCode) => {
        if (!mayRunAgain(id, exitCode) || !await runAgain(id, exitCode)) {
            await callback(id, timestamp, exitCode);
        }
    });
}

/** Tell whether a local trial was killed from outside, as by the kernel when memory is out. */
function wasKilled(v3, id) {
    const signal = v3.trialKeeper?.trials?.get(id)?.info?.stopSignal;
    return Boolean(signal) && !MEANT.includes(signal);
}

/** Keep what a local trial said before it crashed: its second run begins the file anew. */
function keepWords(v3, id) {
    const folder = path.join(option('experiments-directory'), option('experiment-id'),
        'environments', v3.env?.id ?? '', 'trials', id);
    const said = path.join(folder, 'trial.stderr');
    attempt('words', () => fs.existsSync(said) && fs.renameSync(said, `${said}.first`));
}

function option(name) {
    return process.argv[process.argv.indexOf(`--${name}`) + 1] ?? '';
}

// ---------------------------------------------------------------- together, patience, numbers

function mendManager(exports) {
    const proto = exports.NNIManager?.prototype;
    need(proto, 'stopExperiment', 'stopExperimentTopHalf', 'stopExperimentBottomHalf',
        'addRecoveredTrialJob', 'onTrialJobMetrics');
    const { addRecoveredTrialJob, onTrialJobMetrics } = proto;
    proto.onTrialJobMetrics = function (metric) {
        const told = onTrialJobMetrics.call(this, metric);
        storing.set(metric.id, Promise.allSettled([storing.get(metric.id), told]));
        return told;
    };
    proto.stopExperiment = async function () {
        isStopping = true;
        const tunerEnds = this.stopExperimentTopHalf(); // takes seconds; no new trial from now on
        await sleep(PAUSE_MS); // what the manager is about to write down, it still writes down
        const jobs = await this.trainingService.listTrialJobs();
        const alive = jobs.filter(job => ['RUNNING', 'WAITING'].includes(job.status));
        await Promise.allSettled(
            [tunerEnds, ...alive.map(job => this.trainingService.cancelTrialJob(job.id))]);
        await this.stopExperimentBottomHalf();
    };
    proto.addRecoveredTrialJob = function (jobs) {
        const recovered = addRecoveredTrialJob.call(this, jobs.filter(isWanted));
        const numbers = jobs.map(job => job.sequenceId ?? -1);
        this.experimentProfile.nextSequenceId = Math.max(-1, ...numbers) + 1;
        return recovered;
    };
    if (POSTED > 0) {
        attempt('posted', () => runPostedTrialsAlone(proto));
    }
}

/** Run posted trials alone: the tuner learns nothing of them, and limits of the search are past. */
function runPostedTrialsAlone(proto) {
    need(proto, 'setupTuner', 'requestTrialJobs');
    const { setupTuner } = proto;
    Object.defineProperty(proto, 'maxTrialNum', { get: () => POSTED });
    Object.defineProperty(proto, 'maxDuration', { get: () => Infinity });
    proto.requestTrialJobs = () => undefined;
    proto.setupTuner = async function (...args) {
        await setupTuner.apply(this, args);
        const tuner = this.dispatcher;
        this.dispatcher = {
            init: () => tuner.init(),
            onCommand: listener => tuner.onCommand(listener),
            onError: listener => tuner.onError(listener),
            sendCommand: (type, content) => ['IN', 'TE'].includes(type)
                && tuner.sendCommand(type, content), // initialise, terminate
        };
    };
}

/** Keep the door open to which trials report, until they have ended. */
function mendShutdown(exports) {
    const proto = exports.ShutdownManager?.prototype;
    need(proto, 'shutdown');
    const { shutdown } = proto;
    proto.shutdown = function () {
        const manager = this.modules.get('NniManager');
        if (manager !== undefined) {
            const ended = Promise.resolve().then(manager);
            this.modules.set('NniManager', () => ended);
            for (const [name, close] of this.modules) {
                if (name.startsWith('RestServer')) {
                    this.modules.set(name, () => ended.catch(() => undefined).then(close));
                }
            }
        }
        return shutdown.call(this);
    };
}

function mendProcesses(exports) {
    const proto = exports.TrialProcess?.prototype;
    need(proto, 'kill');
    const { kill } = proto;
    proto.kill = function (timeout) {
        return kill.call(this, timeout ?? PATIENCE_MS);
    };
    letGoOfLogs();
}

/** Wait longer for the tuner: importing NNI alone takes seconds, several times that under load. */
function mendTunerChannel(exports) {
    const proto = exports.getTunerServer?.()?.constructor?.prototype;
    need(proto, 'init');
    proto.init = function () {
        const late = new Error(
            `the tuner did not connect within ${TUNER_MS / 1000} s; see dispatcher.log`);
        setTimeout(() => this.connect.settled || this.connect.reject(late), TUNER_MS).unref();
        return this.connect.promise;
    };
}

// ---------------------------------------------------------------- starter

/** End with the process that starts this search, as long as it has not written search.json. */
function endWith(starter) {
    const note = path.join(option('experiments-directory'), option('experiment-id'), 'search.json');
    const timer = setInterval(() => {
        if (process.ppid === starter && !fs.existsSync(note)) {
            return;
        }
        clearInterval(timer);
        if (!fs.existsSync(note)) {
            warn('search.py was killed while it started this search, which ends');
            process.kill(process.pid, 'SIGTERM');
            setTimeout(() => process.exit(1), SHUTDOWN_MS).unref();
        }
    }, LOOK_MS);
    timer.unref();
}

// ---------------------------------------------------------------- entry

const TARGETS = {
    'training_service/v3/compat.js': mendTrials,
    'common/globals/shutdown.js': mendShutdown,
    'core/nnimanager.js': mendManager,
    'core/tuner_command_channel.js': mendTunerChannel,
    'common/trial_keeper/process.js': mendProcesses,
};

/** Whether this process is NNI's manager, and no other Node program with our NODE_OPTIONS. */
function isManager() {
    const main = process.argv[1] ?? '';
    return path.basename(main) === 'main.js'
        && fs.existsSync(path.join(path.dirname(main), 'core/nnimanager.js'));
}

if (isManager()) {
    if (process.env.BALLOT_STARTER) {
        attempt('starter', () => endWith(Number(process.env.BALLOT_STARTER)));
    }
    const root = path.dirname(fs.realpathSync(process.argv[1]));
    const load = Module._extensions['.js'];
    Module._extensions['.js'] = function (module, filename) {
        load.call(this, module, filename);
        const name = path.relative(root, filename).replaceAll(path.sep, '/');
        if (TARGETS[name] !== undefined) {
            attempt(name, () => TARGETS[name](module.exports));
        }
    };
}
