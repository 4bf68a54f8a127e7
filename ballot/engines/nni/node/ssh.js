/*
 * NNI's remote machines over the system's ssh: commands, tunnels, and the keeper that is started
 * there. A part of remote.js.
 */
'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const START_MS = 180000; // for a machine to start a keeper
const COPY_MS = 3600000; // for the code, or a checkpoint, on a slow line
const KNOWN = ['-S', 'none', '-o', 'StrictHostKeyChecking=yes']; // new keys were accepted before
const TUNNEL = [...KNOWN, '-N', '-o', 'ServerAliveInterval=15', '-o', 'ServerAliveCountMax=20',
    '-o', 'ExitOnForwardFailure=yes', '-o', 'LogLevel=INFO'];
const ONCE = [...KNOWN, '-o', 'ServerAliveInterval=10', '-o', 'ServerAliveCountMax=3',
    '-o', 'ClearAllForwardings=yes', '-o', 'LogLevel=ERROR'];

const settings = JSON.parse(process.env.BALLOT_REMOTE || 'null');
const machines = new WeakMap(); // by their entries in NNI's configuration
const tunnels = new Set(); // processes
const held = globalThis.ballotHeld ??= new Set(); // with guard.js

function warn(message) {
    console.error(`[ballot remote] ${message}`); // nnictl_stderr.log
}

function need(target, ...methods) {
    const missing = methods.filter(name => typeof target?.[name] !== 'function');
    if (missing.length > 0) {
        throw new Error(`this version of NNI has no ${missing.join(', ')}`);
    }
}

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

function option(name) {
    return process.argv[process.argv.indexOf(`--${name}`) + 1] ?? '';
}

// ---------------------------------------------------------------- commands

/** Start ssh to a machine; it is known as this search's, so that it never outlives it. */
function ssh(machine, options, command) {
    const [program, ...words] = machine.ssh;
    const all = [...options, ...words, ...(command === undefined ? [] : [command])];
    const env = { ...process.env, NNI_EXP_ID: option('experiment-id'), NODE_OPTIONS: '' };
    if (machine.agent) {
        env.SSH_AUTH_SOCK = machine.agent;
    }
    return spawn(program, all, { env, detached: true, stdio: 'pipe' });
}

const script = name => fs.readFileSync(path.join(__dirname, name), 'utf8');
const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

/** Run a command there, read by sh whatever the login shell is, and return what it wrote. */
function run(machine, command, { input = '', output = null, limit = START_MS } = {}) {
    return new Promise((resolve, reject) => {
        const child = ssh(machine, ONCE, `exec sh -c ${quoted(command)}`);
        const said = { stdout: '', stderr: '' };
        const timer = setTimeout(() => child.kill('SIGKILL'), limit);
        child.stderr.on('data', data => { said.stderr += data; });
        if (output === null) {
            child.stdout.on('data', data => { said.stdout += data; });
        } else {
            child.stdout.pipe(output);
        }
        child.stdin.on('error', () => undefined); // it ended before it had read everything
        child.on('error', reject);
        child.on('close', code => {
            clearTimeout(timer);
            const last = said.stderr.trim().split('\n').at(-1);
            if (code === null || code === 255) {
                reject(new Error(last || `no answer from ${machine.name}`));
            } else {
                resolve({ ...said, code, last });
            }
        });
        if (typeof input === 'string') {
            child.stdin.end(input);
        } else {
            input.on('error', error => { child.kill(); reject(error); });
            input.pipe(child.stdin);
        }
    });
}

/** Call a function of on_machine.py there, and return what it returns. */
async function call(machine, name, ...args) {
    const packed = Buffer.from(JSON.stringify(args)).toString('base64');
    const program = `${script('../sent/on_machine.py')}\nimport base64\n`
        + `print(json.dumps(${name}(*json.loads(base64.b64decode("${packed}")))))\n`;
    const done = await run(machine, `exec ${machine.python} -`, { input: program });
    if (done.code !== 0) {
        throw new Error(done.last || `${machine.python} ended with status ${done.code}`);
    }
    return JSON.parse(done.stdout.trim().split('\n').at(-1));
}

function mendSsh(exports) {
    const proto = exports.Ssh?.prototype;
    need(proto, 'connect', 'disconnect', 'exec', 'download', 'upload', 'writeFile');
    const send = async (machine, target, input) => {
        const done = await run(machine, `cat >${quoted(target)}`, { input, limit: COPY_MS });
        if (done.code !== 0) {
            throw new Error(done.last);
        }
    };
    proto.connect = async () => undefined; // each command makes its own connection
    proto.disconnect = () => undefined;
    proto.exec = async function (command) {
        return run(machines.get(this.config), command);
    };
    proto.upload = async function (localPath, remotePath) {
        await send(machines.get(this.config), remotePath, fs.createReadStream(localPath));
    };
    proto.writeFile = async function (remotePath, data) {
        await send(machines.get(this.config), remotePath, data);
    };
    proto.download = async function (remotePath, localPath) {
        const output = fs.createWriteStream(localPath);
        const done = await run(machines.get(this.config), `cat ${quoted(remotePath)}`, { output });
        if (done.code !== 0) {
            throw new Error(done.last);
        }
    };
}

/** Copy a folder of this machine there; variables in the target are expanded there. */
async function sendFolder(machine, folder, target) {
    const stdio = ['ignore', 'pipe', 'ignore'];
    const tar = spawn('tar', ['-C', folder, '-cf', '-', '.'], { stdio });
    tar.on('error', error => warn(error.message));
    const there = `"${target.replace(/^~(?=\/)/, '$HOME').replace(/["\\`]/g, '\\$&')}"`;
    const done = await run(machine, `export NNI_EXP_ID=${option('experiment-id')}; `
        + `mkdir -p ${there} && tar -C ${there} -xf -`, { input: tar.stdout, limit: COPY_MS });
    if (done.code !== 0) {
        throw new Error(done.last);
    }
}

// ---------------------------------------------------------------- tunnel

/** The way back from a machine to this manager; its port there is any that is free. */
class Tunnel {
    constructor(machine) {
        this.machine = machine;
        this.port = null; // on the machine, while it is open
        this.why = '';
    }

    /** Open it, where it is not open; what uses it learns of its end by its own connection. */
    open() {
        return this.opening ??= this.#open().finally(() => { this.opening = null; });
    }

    async #open() {
        if (this.port !== null) {
            return;
        }
        const child = ssh(this.machine,
            [...TUNNEL, '-R', `127.0.0.1:0:127.0.0.1:${option('port')}`]);
        tunnels.add(child);
        let said = '';
        await new Promise((resolve, reject) => {
            child.stdout.resume();
            child.on('error', reject);
            child.stderr.on('data', data => {
                said = (said + data).slice(-4000);
                const allocated = /Allocated port (\d+) for remote forward/.exec(said);
                if (allocated && this.port === null) {
                    this.port = Number(allocated[1]);
                    said = '';
                    resolve();
                }
            });
            child.on('close', () => {
                tunnels.delete(child);
                this.port = null;
                this.why = said.trim().split('\n').at(-1).trim() || 'the tunnel ended';
                reject(new Error(this.why));
            });
        });
    }
}

/** Return the one tunnel to a machine. */
function tunnelTo(machine) {
    return machine.tunnel ??= new Tunnel(machine);
}

function closeTunnels() {
    tunnels.forEach(child => child.kill());
}
process.on('exit', closeTunnels);

// ---------------------------------------------------------------- keeper

function mendWorker(exports) {
    const proto = exports.Worker?.prototype;
    need(proto, 'start', 'setChannel', 'upload');
    proto.start = async function () {
        const machine = machines.get(this.config), tunnel = tunnelTo(machine);
        const url = new URL(this.channelUrl);
        url.hostname = '127.0.0.1';
        url.port = tunnel.port;
        const launcher = { environmentId: this.envId, experimentId: option('experiment-id'),
            logLevel: 'info', managerCommandChannel: url.href, platform: 'remote' };
        const preload = Object.fromEntries(
            ['guard.js', 'keeper.js'].map(name => [name, script(name)]));
        const begun = await call(machine, 'start_keeper',
            { experiment: option('experiment-id'), environment: this.envId, launcher, preload });
        if (begun.error) {
            throw new Error(begun.error);
        }
        const open = begun.listens.filter(address => !address.startsWith('127.0.0.1:'));
        if (open.length > 0) {
            throw new Error(`NNI's keeper there listens on ${open.join(', ')}`);
        }
        this.uploadDir = begun.uploadDirectory;
        this.remoteTrialKeeperDir = begun.trialKeeperDirectory;
        this.env = await this.trialKeeper.start();
        this.env.host = machine.name;
    };
    /**
     * A connection that breaks is not taken up again: NNI's messages are not acknowledged, so that
     * a trial that ended meanwhile would run for ever. The tunnel outlasts a cable cut by itself.
     */
    proto.setChannel = function (channel) {
        this.channel = channel;
        Promise.resolve(this.trialKeeper.setChannel(channel)).catch(error => warn(error.message));
        channel.onLost(() => channel.terminate('connection lost'));
        channel.onClose(() => this.ballotLose?.('NNI\'s keeper there has ended'));
    };
}

/** Note when a machine last answered a ping. */
function mendConnection(exports) {
    const proto = exports.WsConnection?.prototype;
    need(proto, 'handlePong', 'handleMessage');
    for (const name of ['handlePong', 'handleMessage']) {
        const handle = proto[name];
        proto[name] = function (...args) {
            this.ballotHeard = Date.now();
            return handle.apply(this, args);
        };
    }
}

module.exports = { call, closeTunnels, hold, machines, mendConnection, mendSsh, mendWorker, need,
    option, sendFolder, settings, tunnelTo, warn };
