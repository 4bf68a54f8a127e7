/*
 * What NNI 3.0 needs before it can be trusted, as a preload of its Node manager:
 *
 *     NODE_OPTIONS=--require=<this file> nnictl create --config ...
 *
 * NNI is archived (October 2023), so nothing below will be fixed upstream, and nothing in
 * site-packages is touched: classes are wrapped as the manager loads them. Every response
 * carries `X-Ballot-Guard` with the parts that took hold. A part whose target is not found
 * (another version of NNI) is missing there, the manager runs on as shipped, and
 * `ballot/engines/nni/guard.py` says so.
 *
 *   loopback     every server listens on 127.0.0.1            (rest_server/index.js; nni #1542)
 *   requests     foreign Host or Origin, `..` refused         (rest_server/index.js)
 *   peers        other users of this machine are refused      (the same)
 *   messages     what is no command closes its websocket      (common/command_channel/websocket)
 *   netron       the portal's proxy is off                    (node_modules/http-proxy)
 *   files        a trial's files come from its own folder     (training_service/v3/compat.js)
 *   parameters   a trial gets the parameters of its record    (the same; nni #5726, #5693)
 *   schedule     one GPU is enough, a full one is waited for  (common/trial_keeper/task_scheduler)
 *   tensorboard  the portal's TensorBoard listens on loopback (extensions/nniTensorboardManager.js)
 *   commands     the tuner starts without a shell             (common/utils.js)
 *   space        trials know which options are searched       (core/nnimanager.js)
 *
 * Settings: BALLOT_PUBLIC=1 listens on every address, BALLOT_HOSTS=a,b are further names under
 * which the portal may be asked for, BALLOT_PREFIX is the secret beginning of all its paths (as
 * `--url-prefix`, which every user could read in the list of processes). Trials find BALLOT_GUARD=1
 * once `parameters` holds, and the searched options as a JSON list in BALLOT_SEARCHED.
 */
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const Module = require('node:module');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

const LOOPBACK = '127.0.0.1';
const MARKER = 'X-Ballot-Guard';
const RETRY_MS = 1000;
const TRIAL_ID = /^[A-Za-z0-9]+$/;

const isPublic = process.env.BALLOT_PUBLIC === '1';
const extraHosts = (process.env.BALLOT_HOSTS ?? '').toLowerCase().split(',').filter(Boolean);
const held = globalThis.ballotHeld ??= new Set(); // with remote.js

/** Apply one part, or say why not: an exception of ours must never reach the manager. */
function hold(part, apply) {
    try {
        apply();
        held.add(part);
    } catch (error) {
        held.delete(part);
        warn(`'${part}' is not in hold: ${error.message}`);
    }
}

function need(target, ...methods) {
    const missing = methods.filter(name => typeof target?.[name] !== 'function');
    if (missing.length > 0) {
        throw new Error(`this version of NNI has no ${missing.join(', ')}`);
    }
}

/** Write to `nnictl_stderr.log`; NNI's own logger is not there yet when a preload runs. */
function warn(message) {
    console.error(`[ballot guard] ${message}`);
}

// ---------------------------------------------------------------- loopback

/**
 * Rewrite the arguments of `listen` so that a TCP port is bound to loopback alone.
 *
 * NNI names no address and thereby takes all of them. Wrapping Node's own `listen` also covers
 * what the other training services open (port + 1) and does not depend on NNI's file names.
 */
function onLoopback(args) {
    const [first] = args;
    const callbacks = args.filter(arg => typeof arg === 'function');
    if (first == null || typeof first === 'function') {
        return [0, LOOPBACK, ...callbacks];
    }
    if (typeof first === 'number' || /^\d+$/.test(first)) {
        return [first, LOOPBACK, ...callbacks];
    }
    return 'port' in Object(first) ? [{ ...first, host: LOOPBACK }, ...callbacks] : args;
}

function guardListening() {
    const listen = net.Server.prototype.listen;
    net.Server.prototype.listen = function (...args) {
        if (this instanceof http.Server) {
            hold('requests', () => guardRequests(this));
            this.once('listening', () => {
                hold('loopback', () => {
                    if (this.address().address !== LOOPBACK) {
                        throw new Error(`the portal listens on ${this.address().address}`);
                    }
                });
                hold('peers', () => {
                    if (isPublic) {
                        throw new Error('the portal is open to all');
                    }
                    sockets();
                });
            });
        }
        return listen.apply(this, isPublic ? args : onLoopback(args));
    };
}

// ---------------------------------------------------------------- requests

/**
 * Look at requests and websocket upgrades before Express does (express-ws accepts an upgrade
 * before any middleware runs, so a middleware would come too late).
 */
function guardRequests(server) {
    const emit = server.emit;
    server.emit = function (event, request, reply, ...rest) {
        if (event !== 'request' && event !== 'upgrade') {
            return emit.call(this, event, request, reply, ...rest);
        }
        const reason = refusal(request);
        if (event === 'request') {
            reply.setHeader(MARKER, Array.from(held).sort().join(' '));
        }
        if (reason === null) {
            return emit.call(this, event, request, reply, ...rest);
        }
        warn(`refused ${request.method} ${JSON.stringify(request.url)}: ${reason}`);
        if (event === 'request') {
            reply.writeHead(403, { 'Content-Type': 'text/plain', Connection: 'close' });
            reply.end(`Refused by Ballot's guard: ${reason}\n`);
        } else {
            reply.end('HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n');
        }
        return true;
    };
}

/** Return why a request is refused, or null. */
function refusal(request) {
    const { host, origin } = request.headers;
    if (held.has('peers') && !isOwnPeer(request.socket)) {
        return 'another user'; // loopback is open to everybody on this machine
    }
    if (!request.url.startsWith('/')) {
        return 'not a path'; // `GET http://x/netron/`, which Express takes for /netron/
    }
    if (!isOurs(`http://${host}`)) {
        return 'foreign Host'; // DNS rebinding: a web page whose name now points to this machine
    }
    if (origin !== undefined && !isSame(origin, host)) {
        return 'foreign Origin'; // another web page that posts trials or opens a websocket
    }
    if (climbs(request.url)) {
        return 'path outside what is served'; // trial-file/<id>/..%2f..%2fetc%2fpasswd
    }
    return null;
}

/** Tell whether a page comes from the host and the port that it asks. */
function isSame(origin, host) {
    try {
        const page = new URL(origin);
        return page.host !== '' && page.host === new URL(`${page.protocol}//${host}`).host;
    } catch {
        return false; // `Origin: null` of a sandboxed frame or a local file
    }
}

function isOurs(url) {
    let name;
    try {
        name = new URL(url).hostname;
    } catch {
        return false; // no Host
    }
    return ['localhost', LOOPBACK, '[::1]'].includes(name)
        || extraHosts.includes(name)
        || (isPublic && ownNames().includes(name));
}

/** Return this machine's name and addresses; asked anew each time, because they change. */
function ownNames() {
    const addresses = Object.values(os.networkInterfaces()).flat().map(entry => entry.address);
    const names = addresses.map(address => net.isIPv6(address) ? `[${address}]` : address);
    return [os.hostname().toLowerCase(), ...names];
}

/** Tell whether a URL's path has a `..`, however often it is encoded. */
function climbs(url) {
    let decoded = url.split('?')[0];
    for (let round = 0; round < 3; round++) {
        try {
            decoded = decodeURIComponent(decoded);
        } catch {
            return round === 0; // later rounds meet file names that hold a `%`
        }
        if (decoded.includes('\0') || decoded.split(/[\\/]/).includes('..')) {
            return true;
        }
    }
    return false;
}

// ---------------------------------------------------------------- peers, secret

const knownPeers = new WeakMap(); // a connection's other end stays whose it was

function isOwnPeer(socket) {
    if (!knownPeers.has(socket)) {
        let uid = null;
        try {
            // The kernel's list may miss one where others come and go while it is read.
            uid = uidOfPeer(socket) ?? uidOfPeer(socket) ?? uidOfPeer(socket);
        } catch (error) {
            warn(`a peer is unknown: ${error.message}`); // too many open files
        }
        knownPeers.set(socket, [process.getuid(), 0].includes(uid));
    }
    return knownPeers.get(socket);
}

/** Return the user at the other end of a connection of this machine, null where it is unknown. */
function uidOfPeer({ remoteAddress, remotePort, localAddress, localPort }) {
    const from = kernelAddress(remoteAddress, remotePort);
    const to = kernelAddress(localAddress, localPort);
    for (const line of sockets()) {
        const [, local, remote, , , , , uid, , inode] = line.trim().split(/\s+/);
        // The kernel says 0, which is root, of a socket that its owner has closed: it has no inode.
        if (local?.endsWith(from) && remote?.endsWith(to) && inode !== '0') {
            return Number(uid);
        }
    }
    return null;
}

function sockets() {
    return ['tcp', 'tcp6'].flatMap(name => {
        try {
            return fs.readFileSync(`/proc/net/${name}`, 'latin1').split('\n').slice(1);
        } catch (error) {
            if (name === 'tcp') {
                throw error;
            }
            return []; // a kernel without IPv6
        }
    });
}

/** Write an IPv4 address and a port as /proc/net/tcp does; it is the end of a mapped one, too. */
function kernelAddress(address, port) {
    const bytes = String(address).replace('::ffff:', '').split('.').map(Number);
    const ordered = os.endianness() === 'LE' ? bytes.reverse() : bytes;
    const hex = (number, width) => number.toString(16).toUpperCase().padStart(width, '0');
    return `${ordered.map(byte => hex(byte, 2)).join('')}:${hex(port, 4)}`;
}

/** Take the secret prefix where only this user can read it, and hand it to NNI's own parser. */
function takePrefix() {
    const prefix = process.env.BALLOT_PREFIX;
    delete process.env.BALLOT_PREFIX;
    if (prefix) {
        process.argv.push('--url-prefix', prefix); // /proc/<pid>/cmdline does not change with it
    }
}

// ---------------------------------------------------------------- messages, netron

const JSON_INSIDE = ['TR', 'SP', 'KI']; // commands of the tuner whose content NNI parses

/** Close a websocket that says what is no command; NNI's manager dies of it. */
function guardMessages(exports) {
    const proto = exports.WsConnection?.prototype;
    need(proto, 'handleMessage');
    const { handleMessage } = proto;
    proto.handleMessage = function (data, ...rest) {
        try {
            requireCommand(JSON.parse(String(data)));
            return handleMessage.call(this, data, ...rest);
        } catch (error) {
            warn(`closed a websocket for its message: ${error.message}`);
            return this.ws.close(1008);
        }
    };
}

function requireCommand(command) {
    const { type, content } = command ?? {};
    if (typeof type !== 'string' || type === 'error' || type.startsWith('__')) {
        throw new Error('not a command'); // `error` and `__close` are events of NNI's own
    }
    if (JSON_INSIDE.includes(type)) {
        JSON.parse(content);
    }
}

/** The portal's proxy runs netron.app's scripts with the portal's rights, and dies of bad hosts. */
function guardProxy(exports) {
    need(exports, 'createProxyServer');
    const web = (_request, reply) => reply.status(403).send('Refused by Ballot: netron is off\n');
    exports.createProxyServer = () => ({ web });
}

// ---------------------------------------------------------------- files, parameters

function guardTrials(exports) {
    const { V3asV1 } = exports;
    need(V3asV1?.prototype, 'submitTrialJob', 'getTrialFile', 'getTrialOutputLocalPath');

    exports.V3asV1 = class extends V3asV1 {
        #parameters = new Map(); // trial id -> its parameters, as the JSON that was recorded
        #submitting = null; // the manager submits one trial after the other (core/nnimanager.js)
        #stopped = false;

        constructor(config) {
            super(config);
            hold('parameters', () => {
                this.#ownParameters(config, this.v3);
                process.env.BALLOT_GUARD = '1';
            });
            hold('files', () => need(this.v3, 'downloadTrialDirectory'));
        }

        async submitTrialJob(form) {
            this.#submitting = form.hyperParameters.value;
            return super.submitTrialJob(form);
        }

        /**
         * Bind parameters to a trial's id before it starts, where NNI keeps them in a queue and
         * whichever trial asks first takes the head. Asking twice gives the same answer.
         */
        #ownParameters(config, v3) {
            need(v3, 'createTrial', 'onRequestParameter', 'sendParameter', 'stop');
            const create = v3.createTrial.bind(v3);
            const isRemote = String(config.platform).startsWith('remote');
            v3.createTrial = async (envId, command, directory, sequenceId, id = newTrialId()) => {
                this.#parameters.set(id, this.#submitting);
                this.parameters.length = 0; // NNI's queue, which nothing reads any more
                const told = isRemote ? wordsForRemote() + command : command;
                const created = this.#stopped ? null : await quietly(() =>
                    create(envId, told, directory, sequenceId, id));
                if (created === null) {
                    // No device is free, or it failed. submitTrialJob asks again at once and for
                    // ever, which takes a core and 4 GB of memory: an exception must not reach it.
                    // It asks on while the search ends too, which would leave an orphan behind.
                    this.#parameters.delete(id);
                    await sleep(RETRY_MS);
                }
                return created;
            };
            const stop = v3.stop.bind(v3);
            v3.stop = () => {
                this.#stopped = true;
                return stop();
            };
            const onRequest = v3.onRequestParameter.bind(v3);
            v3.onRequestParameter = _takeFromQueue => onRequest(id => quietly(() => {
                if (!this.#parameters.has(id)) {
                    throw new Error(`trial ${id} asks for parameters but was not started here`);
                }
                return v3.sendParameter(id, this.#parameters.get(id));
            }));
        }

        /** Read one file of one trial; a link that leads out of its folder is refused too. */
        async getTrialFile(trialId, fileName) {
            requireTrialId(trialId);
            const folder = fs.realpathSync(await this.v3.downloadTrialDirectory(trialId));
            const name = { stdout: 'trial.stdout', stderr: 'trial.stderr' }[fileName] ?? fileName;
            const file = fs.realpathSync(path.join(folder, name));
            if (!file.startsWith(folder + path.sep)) {
                throw new Error(`${fileName} is outside the folder of trial ${trialId}`);
            }
            const isText = ['trial.log', 'trial.stdout', 'trial.stderr'].includes(name);
            return fs.promises.readFile(file, isText ? 'utf8' : null);
        }

        /** TensorBoard's path of a trial, which NNI creates before it looks at the id. */
        async getTrialOutputLocalPath(trialId) {
            requireTrialId(trialId);
            return super.getTrialOutputLocalPath(trialId);
        }
    };
}

/** Return what a remote trial's command begins with: it does not inherit the environment here. */
function wordsForRemote() {
    const searched = process.env.BALLOT_SEARCHED?.replaceAll("'", "'\\''");
    return 'BALLOT_GUARD=1 ' + (searched === undefined ? '' : `BALLOT_SEARCHED='${searched}' `);
}

/** Tell trials which options the search space has: a tuner sets those and no others. */
function guardSpace(exports) {
    const proto = exports.NNIManager?.prototype;
    need(proto, 'setupTuner', 'updateSearchSpace');
    const { setupTuner, updateSearchSpace } = proto;
    const tell = space => {
        process.env.BALLOT_SEARCHED = JSON.stringify(Object.keys(space ?? {}));
    };
    proto.setupTuner = function (...args) {
        tell(this.experimentProfile.params.searchSpace);
        return setupTuner.apply(this, args);
    };
    proto.updateSearchSpace = function (space) {
        tell(space);
        return updateSearchSpace.call(this, space);
    };
}

/** Return what `action` resolves to, or null and a line in the log where it throws. */
async function quietly(action) {
    try {
        return await action();
    } catch (error) {
        warn(error.stack);
        return null;
    }
}

/** Return an id like NNI's: five letters and digits, the first a letter. */
function newTrialId() {
    const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
    const rest = Array.from({ length: 4 }, () => crypto.randomInt(62));
    return [crypto.randomInt(52), ...rest].map(n => (letters + '0123456789')[n]).join('');
}

function requireTrialId(trialId) {
    if (!TRIAL_ID.test(trialId)) {
        throw new Error('not the id of a trial');
    }
}

// ---------------------------------------------------------------- schedule, tensorboard, commands

/** Make `trialGpuNumber` equal to the number of GPUs work (scheduler.js refuses `>=`). */
function guardScheduler(exports) {
    const proto = exports.TaskScheduler?.prototype;
    need(proto, 'schedule', 'update');
    const { schedule, update } = proto;
    proto.schedule = function (experimentId, trialId, gpuNumber, restrictions) {
        // A hair less than all passes the comparison, still rounds to all, and on a single GPU
        // still leaves no room for a second trial. With no GPU admitted scheduler.js throws.
        const number = gpuNumber === this.gpus.length ? gpuNumber - 1e-6 : gpuNumber;
        return quietly(() => schedule.call(this, experimentId, trialId, number, restrictions));
    };
    proto.update = function (force) {
        // `schedule` does not await this one: a rejection (a GPU was lost) ends the manager.
        const updated = update.call(this, force);
        return force ? updated : updated.catch(error => warn(error.message));
    };
}

/** Run one collector of GPU states at a time: each is a Python that imports NNI, 3 s of CPU. */
function guardCollector(exports) {
    need(exports, 'collectGpuInfo');
    const { collectGpuInfo } = exports;
    let running = null;
    exports.collectGpuInfo = force => {
        running ??= collectGpuInfo(force).finally(() => { running = null; });
        return running;
    };
}

/** The portal's button starts `tensorboard --bind_all`: a second door to the network. */
function guardTensorboard(exports) {
    const proto = exports.NNITensorboardManager?.prototype;
    need(proto, 'getTensorboardStartCommand');
    const command = proto.getTensorboardStartCommand;
    proto.getTensorboardStartCommand = async function (...args) {
        const words = await command.apply(this, args);
        const host = isPublic ? '--bind_all' : `--host=${LOOPBACK}`;
        return words.map(word => word.replace('--bind_all', host));
    };
}

/** Start the tuner, and TensorBoard, without the shell to which NNI hands unquoted paths. */
function guardCommands(exports) {
    need(exports, 'getTunerProc');
    const { getTunerProc } = exports;
    exports.getTunerProc = (command, stdio, folder, environment, _shell, isDetached) => {
        const child = getTunerProc(command, stdio, folder, environment, false, isDetached);
        child.on('error', error => warn(`${command[0]}: ${error.message}`));
        return child;
    };
}

// ---------------------------------------------------------------- entry

const TARGETS = {
    'common/command_channel/websocket/connection.js': ['messages', guardMessages],
    'common/utils.js': ['commands', guardCommands],
    'core/nnimanager.js': ['space', guardSpace],
    'node_modules/http-proxy/lib/http-proxy.js': ['netron', guardProxy],
    'training_service/v3/compat.js': ['files', guardTrials],
    'common/trial_keeper/task_scheduler/collect_info.js': ['collector', guardCollector],
    'common/trial_keeper/task_scheduler/scheduler.js': ['schedule', guardScheduler],
    'extensions/nniTensorboardManager.js': ['tensorboard', guardTensorboard],
};

/** Return the folder of NNI's JavaScript if this process is its manager or a machine's keeper. */
function nniRoot() {
    const main = process.argv[1] ?? '';
    if (path.basename(main) !== 'main.js' || !fs.existsSync(main)) {
        return null; // some other Node program that inherited NODE_OPTIONS
    }
    const folder = path.dirname(fs.realpathSync(main));
    const roots = [folder, path.resolve(folder, '../..')];
    return roots.find(root => fs.existsSync(path.join(root, 'core/nnimanager.js'))) ?? null;
}

function guardModules(root) {
    need(Module._extensions, '.js');
    const load = Module._extensions['.js'];
    Module._extensions['.js'] = function (module, filename) {
        load.call(this, module, filename);
        const target = TARGETS[path.relative(root, filename).replaceAll(path.sep, '/')];
        if (target !== undefined) {
            hold(target[0], () => target[1](module.exports));
        }
    };
}

const root = nniRoot();
if (root !== null) {
    delete process.env.BALLOT_GUARD; // only a manager whose parameters are in hold may say so
    delete process.env.BALLOT_SEARCHED;
    takePrefix();
    guardListening();
    hold('modules', () => guardModules(root));
}
