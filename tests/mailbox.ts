/** A mail server for tests: takes every letter and lets it be read. */

import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';

/** A letter that arrived. */
export interface Received {
  readonly from: string;
  readonly to: string;
  readonly subject: string;
  readonly text: string;
}

/** A mail server that runs. */
export interface Mailbox {
  /** For `RUNGATE_SMTP_URL`; it takes any user and password. */
  readonly url: string;
  readonly received: Received[];
  /** The first letter to an address from the `after`th letter on, once it is there. */
  next(to: string, after?: number): Promise<Received>;
  stop(): Promise<void>;
}

const TRIES = 500;
const PAUSE_MS = 10;

/** Starts a mail server on a free port of the loopback interface. */
export async function startMailbox(): Promise<Mailbox> {
  const received: Received[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket)).on('error', () => {});
    talk(socket, (letter) => received.push(letter));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    url: `smtp://canary:mail-passw0rd-canary@127.0.0.1:${port}`,
    received,
    async next(to, after = 0) {
      for (let left = TRIES; left > 0; left--) {
        const found = received.slice(after).find((letter) => letter.to === to);
        if (found) return found;
        await Bun.sleep(PAUSE_MS);
      }
      throw new Error(`no letter to ${to} among ${received.length}`);
    },
    async stop() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

const ANSWERS = new Map([
  ['EHLO', '250-mailbox\r\n250 AUTH PLAIN'],
  ['AUTH', '235 welcome'],
  ['DATA', '354 go on'],
  ['QUIT', '221 bye'],
]);

/** The server's side of RFC 5321, as far as a client needs it to get rid of a letter. */
function talk(socket: Socket, take: (letter: Received) => void): void {
  let buffered = '';
  let envelope = { from: '', to: '' };
  let isData = false;
  const say = (line: string) => void socket.write(`${line}\r\n`);
  const answer = (line: string): void => {
    const [verb = ''] = line.toUpperCase().split(/[ :]/);
    const address = /<([^>]*)>/.exec(line)?.[1] ?? '';
    if (verb === 'MAIL') envelope = { from: address, to: '' };
    if (verb === 'RCPT') envelope = { ...envelope, to: address };
    isData = verb === 'DATA';
    say(ANSWERS.get(verb) ?? '250 fine');
  };
  socket.setEncoding('utf8').on('data', (chunk: string) => {
    buffered += chunk;
    for (;;) {
      const end = buffered.indexOf(isData ? '\r\n.\r\n' : '\r\n');
      if (end < 0) return;
      const part = buffered.slice(0, end);
      buffered = buffered.slice(end + (isData ? 5 : 2));
      if (isData) {
        take({ ...envelope, ...readMessage(part) });
        isData = false;
        say('250 taken');
      } else answer(part);
    }
  });
  say('220 mailbox');
}

function readMessage(message: string): { subject: string; text: string } {
  const [head = '', ...rest] = message.split('\r\n\r\n');
  const body = rest.join('\n\n').replaceAll('\r\n', '\n');
  const isQuoted = /^content-transfer-encoding: quoted-printable$/im.test(head);
  const bytes = body
    .replace(/=\n/g, '')
    .replace(/=([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  const text = isQuoted ? Buffer.from(bytes, 'latin1').toString() : body;
  return { subject: /^subject: (.*)$/im.exec(head)?.[1] ?? '', text };
}
