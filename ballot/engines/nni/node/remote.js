/*
 * What NNI 3.0 needs before its remote machines can be trusted, in its running manager. A preload
 * like guard.js and trials.js, to be loaded after both (docs/remote.md says why).
 *
 *   ssh       NNI's connections are those of the system's ssh: its known hosts, agent, aliases and
 *             jump hosts (NNI: a library that checks no host key)
 *   machines  a tunnel to each machine, watched and reopened; a keeper there that listens on
 *             loopback alone; no pip; a machine that is lost is tried again every 15 s, for ever
 *             (NNI: dropped after one failure), and its trials run again, there or elsewhere, each
 *             once and unknown to NNI (NNI: they are over)
 *   placement each trial goes to the least busy machine, one for each of its slots (NNI: in turn)
 *
 * Settings, as JSON in BALLOT_REMOTE: `machines` in the configuration's order, each with `name`,
 * `ssh` (the words of a command line), `python` and `slots`; `running` and `outDir`, the folders of
 * kept checkpoints here and of runs there. What becomes of the machines is
 * written to `machines.json` beside NNI's database. A part that does not find its place in NNI's
 * code is missing in X-Ballot-Guard, and search.py does not go on.
 */
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');

const { mendPlacement, mendService } = require('./fleet.js');
const { hold, mendConnection, mendSsh, mendWorker, settings } = require('./ssh.js');

const TARGETS = {
    'training_service/remote_v3/ssh.js': ['ssh', mendSsh],
    'training_service/remote_v3/worker.js': ['worker', mendWorker],
    'training_service/remote_v3/remote.js': ['machines', mendService],
    'common/command_channel/websocket/connection.js': ['pings', mendConnection],
    'training_service/v3/compat.js': ['placement', mendPlacement],
};

function isManager() {
    const main = process.argv[1] ?? '';
    return path.basename(main) === 'main.js'
        && fs.existsSync(path.join(path.dirname(main), 'core/nnimanager.js'));
}

if (settings !== null && isManager()) {
    const root = path.dirname(fs.realpathSync(process.argv[1]));
    const load = Module._extensions['.js'];
    Module._extensions['.js'] = function (module, filename) {
        load.call(this, module, filename);
        const target = TARGETS[path.relative(root, filename).replaceAll(path.sep, '/')];
        if (target !== undefined) {
            hold(target[0], () => target[1](module.exports, root));
        }
    };
}
