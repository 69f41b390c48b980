/** Connections over TLS to addresses that were checked, and how the reading of one is paused. */

import { Agent, type AgentOptions } from 'node:https';
import { connect as connectTcp, type LookupFunction, type Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';

/** Short of the five seconds after which common servers close an idle connection. */
const KEEP_IDLE_SOCKET_MS = 4000;
const MAX_IDLE_SOCKETS_PER_HOST = 64;

/** Stops and restarts the reading of a connection. */
export interface Valve {
  shut(): void;
  open(): void;
}

/** Opens connections to checked addresses only, and keeps them for calls to the same name. */
export class PinnedAgent extends Agent {
  readonly valves = new WeakMap<object, Valve>();
  readonly #lookup: LookupFunction;
  readonly #ca: string | undefined;

  constructor(lookup: LookupFunction, ca: string | undefined) {
    super({
      keepAlive: true,
      timeout: KEEP_IDLE_SOCKET_MS,
      maxFreeSockets: MAX_IDLE_SOCKETS_PER_HOST,
      scheduling: 'lifo',
    });
    this.#lookup = lookup;
    this.#ca = ca;
  }

  /** The certificate is checked for the name; the address is whatever the look-up let through. */
  override createConnection({ host, port, servername }: AgentOptions & { host?: string }): Duplex {
    const peer = { host: host ?? '', port: Number(port) };
    const raw = connectTcp({ ...peer, lookup: this.#lookup, autoSelectFamily: true });
    raw.setNoDelay(true);
    const { socket, valve } = addValve(raw);
    const secure = connectTls({
      socket,
      host: peer.host,
      servername: servername ?? '',
      ALPNProtocols: ['http/1.1'],
      ...(this.#ca === undefined ? {} : { ca: this.#ca }),
    });
    for (const layer of [raw, socket]) layer.on('error', (error) => secure.destroy(error));
    // A kept connection that the peer leaves must go at once, or the next call would be lost on it.
    secure.once('end', () => queueMicrotask(() => secure.destroy()));
    secure.once('close', () => raw.destroy());
    this.valves.set(secure, valve);
    return secure;
  }
}

/** Pausing a TLS socket doesn't stop every runtime from reading; pausing what is beneath it does. */
function addValve(raw: Socket): { socket: Duplex; valve: Valve } {
  let isShut = false;
  const socket = new Duplex({
    read: () => void (isShut || raw.resume()),
    write: (chunk, _encoding, done) => void raw.write(chunk, done),
    final: (done) => void raw.end(done),
    destroy: (error, done) => {
      raw.destroy();
      done(error);
    },
  });
  raw.on('data', (chunk) => void (socket.push(chunk) || raw.pause()));
  raw.once('end', () => socket.push(null));
  raw.once('close', () => socket.push(null));
  const shut = () => {
    isShut = true;
    raw.pause();
  };
  const open = () => {
    isShut = false;
    raw.resume();
  };
  return { socket, valve: { shut, open } };
}
