/*
 * What NNI's keeper needs on another machine, as a preload beside guard.js, which makes it
 * listen on that machine's loopback alone. ballot/engines/nni/node/remote.js sends both there.
 *
 *   patience  a trial has 20 s to write what it has before it is killed (NNI: 5 s)
 *   files     the files that a trial writes to are closed here (NNI: 480 trials are its limit)
 *   kills     a trial that was killed from outside is told from one that was ended (NNI: the same);
 *             one that dies with the machine is not told of at all: it is lost, and runs again
 *   secret    trials report to an address that no other user of the machine can guess
 */
'use strict';

const childProcess = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');

const PATIENCE_MS = 40000;
const GOING_DOWN_MS = 3000; // a machine that shuts down ends the keeper too, within that time
const KILLED = 137; // as a shell says it
const MEANT = ['SIGINT', 'SIGTERM', 'SIGHUP'];

function attempt(part, apply) {
    try {
        apply();
    } catch (error) {
        console.error(`[ballot keeper] '${part}' is not in hold: ${error.message}`);
    }
}

function need(target, ...methods) {
    const missing = methods.filter(name => typeof target?.[name] !== 'function');
    if (missing.length > 0) {
        throw new Error(`this version of NNI has no ${missing.join(', ')}`);
    }
}

function mendProcesses(exports) {
    const proto = exports.TrialProcess?.prototype;
    need(proto, 'kill', 'onStop');
    const { kill, onStop } = proto;
    const asked = new WeakSet();
    proto.kill = function (timeout) {
        asked.add(this);
        return kill.call(this, timeout ?? PATIENCE_MS);
    };
    letGoOfLogs();
    proto.onStop = function (callback) {
        onStop.call(this, (timestamp, code, signal) => {
            if (!signal || asked.has(this)) {
                callback(timestamp, code, signal);
                return;
            }
            setTimeout(() => callback(timestamp, MEANT.includes(signal) ? code : KILLED, signal),
                GOING_DOWN_MS);
        });
    };
}

/** Close what a child was given to write to: NNI keeps two files open for each trial, for ever. */
function letGoOfLogs() {
    const { spawn } = childProcess;
    childProcess.spawn = function (...how) {
        const child = spawn.apply(this, how);
        const given = how.at(-1)?.stdio;
        for (const stream of Array.isArray(given) ? given : []) {
            if (stream instanceof fs.WriteStream) {
                child.once('spawn', () => stream.destroy());
            }
        }
        return child;
    };
}

function hideChannel(exports) {
    need(exports, 'initGlobalsCustom');
    const { initGlobalsCustom } = exports;
    const urlPrefix = crypto.randomBytes(16).toString('hex');
    exports.initGlobalsCustom = (args, log) => initGlobalsCustom({ ...args, urlPrefix }, log);
}

/** The keeper's own server is told of no prefix, but its addresses are made with it. */
function hideServer(exports) {
    const { RestServerCore } = exports;
    need(RestServerCore?.prototype, 'start');
    exports.RestServerCore = class extends RestServerCore {
        constructor(port, prefix) {
            super(port, prefix || global.nni?.args?.urlPrefix);
        }
    };
}

const TARGETS = {
    'common/trial_keeper/process.js': mendProcesses,
    'common/globals/index.js': hideChannel,
    'rest_server/core.js': hideServer,
};

const main = process.argv[1] ?? '';
if (main.endsWith(path.join('trial_keeper', 'main.js')) && fs.existsSync(main)) {
    const root = path.resolve(path.dirname(fs.realpathSync(main)), '../..');
    const load = Module._extensions['.js'];
    Module._extensions['.js'] = function (module, filename) {
        load.call(this, module, filename);
        const name = path.relative(root, filename).replaceAll(path.sep, '/');
        if (TARGETS[name] !== undefined) {
            attempt(name, () => TARGETS[name](module.exports));
        }
    };
}

module.exports = { letGoOfLogs };
