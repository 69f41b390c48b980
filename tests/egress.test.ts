/** Egress: where it lets a request go, and what it makes of the answer. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer as createTcpServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { createServer as createTlsServer } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, deflateSync, gzipSync, zstdCompressSync } from 'node:zlib';
import {
  type Egress,
  EgressError,
  type EgressErrorCode,
  type EgressInit,
  type EgressOptions,
  type EgressResponse,
  makeEgress,
} from '../functions/egress.ts';
import { parseAllowList } from '../schema/address.ts';
import { type Running, start } from './process.ts';

const NAME = 'api.example.test';
const { ca, cert, key } = certify();

function certify(): { ca: string; cert: string; key: string } {
  const folder = mkdtempSync(join(tmpdir(), 'rungate-egress-'));
  const issue = (name: string, ...args: string[]) => {
    const fresh = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    const files = ['-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`];
    const command = ['openssl', 'req', '-x509', ...fresh, ...files, ...args];
    const { exitCode, stderr } = Bun.spawnSync(command, { cwd: folder, stderr: 'pipe' });
    if (exitCode !== 0) throw new Error(stderr.toString());
  };
  issue('ca');
  const leaf = ['subjectAltName=DNS:api.example.test', 'basicConstraints=critical,CA:FALSE'];
  issue('leaf', '-CA', 'ca.pem', '-CAkey', 'ca.key', ...leaf.flatMap((text) => ['-addext', text]));
  const [ca, cert, key] = ['ca.pem', 'leaf.pem', 'leaf.key'].map((name) =>
    readFileSync(join(folder, name), 'utf8'),
  ) as [string, string, string];
  rmSync(folder, { recursive: true });
  return { ca, cert, key };
}

const PLAIN = 'hello '.repeat(2000);
const ENCODERS = {
  gzip: gzipSync,
  'x-gzip': gzipSync,
  deflate: deflateSync,
  br: brotliCompressSync,
  zstd: zstdCompressSync,
} as const;
const BIG_BYTES = 128 * 1024 * 1024;
const OK = 'HTTP/1.1 200 OK\r\n';

/** An upstream that speaks bytes, so that it can misbehave. */
interface Upstream {
  readonly port: number;
  readonly requests: string[];
  readonly open: Set<Duplex>;
  connections: number;
  /** Connections on which a request came. */
  readonly used: Set<Duplex>;
  writtenBytes: number;
}

const ANSWERS: Record<string, (socket: Duplex, upstream: Upstream) => void> = {
  '/ok': (socket) =>
    socket.write(`${OK}content-length: 2\r\nset-cookie: a\r\nset-cookie: b\r\n\r\nok`),
  '/empty': (socket) => socket.write('HTTP/1.1 204 No Content\r\n\r\n'),
  '/redirect': (socket) =>
    socket.write('HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.2/\r\ncontent-length: 0\r\n\r\n'),
  '/short-length': (socket) => socket.end(`${OK}content-length: 9\r\n\r\npart`),
  '/short-chunks': (socket) => socket.end(`${OK}transfer-encoding: chunked\r\n\r\n4\r\npart\r\n`),
  '/short-gzip': (socket) => {
    const half = gzipSync(PLAIN).subarray(0, 20);
    socket.write(`${OK}content-encoding: gzip\r\ncontent-length: 20\r\n\r\n`);
    socket.write(half);
  },
  '/hang-up': (socket) => socket.end(),
  '/silent': () => {},
  '/stall': (socket) => socket.write(`${OK}transfer-encoding: chunked\r\n\r\n4\r\npart\r\n`),
  '/pause': (socket) => {
    socket.write(`${OK}content-length: 8\r\n\r\npart`);
    setTimeout(() => socket.write('part'), 30);
  },
  '/odd': (socket) => socket.write(`${OK}content-encoding: rot13\r\ncontent-length: 9\r\n\r\na`),
  '/big': (socket, upstream) => {
    socket.write(`${OK}content-length: ${BIG_BYTES}\r\n\r\n`);
    const block = Buffer.alloc(65536);
    const pump = () => {
      while (upstream.writtenBytes < BIG_BYTES) {
        upstream.writtenBytes += block.length;
        if (!socket.write(block)) {
          socket.once('drain', pump);
          return;
        }
      }
    };
    pump();
  },
  ...Object.fromEntries(
    Object.entries(ENCODERS).map(([name, encode]) => [
      `/${name}`,
      (socket: Duplex) => {
        const body = encode(Buffer.from(PLAIN));
        socket.write(`${OK}content-encoding: ${name}\r\ncontent-length: ${body.length}\r\n\r\n`);
        socket.write(body);
      },
    ]),
  ),
};

const servers: Server[] = [];
afterAll(() => {
  for (const server of servers) server.close();
});

async function listen(isTls: boolean, host = '127.0.0.1', port = 0): Promise<Upstream> {
  const sockets = { open: new Set<Duplex>(), used: new Set<Duplex>() };
  const upstream = { ...sockets, requests: [] as string[], connections: 0, port, writtenBytes: 0 };
  const accept = (socket: Duplex) => {
    upstream.connections++;
    upstream.open.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => upstream.open.delete(socket));
    let head = '';
    socket.on('data', (bytes: Buffer) => {
      head += bytes.toString('latin1');
      const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
      if (head.length < head.indexOf('\r\n\r\n') + 4 + length || !head.includes('\r\n\r\n')) return;
      upstream.requests.push(head);
      upstream.used.add(socket);
      const path = head.split(' ')[1] ?? '';
      head = '';
      ANSWERS[path]?.(socket, upstream);
    });
  };
  const server = isTls ? createTlsServer({ cert, key }, accept) : createTcpServer(accept);
  await new Promise<void>((resolve) => server.listen(port, host, resolve));
  upstream.port = (server.address() as AddressInfo).port;
  servers.push(server);
  return upstream;
}

const TIMEOUTS = { connectMs: 5000, firstByteMs: 5000, idleMs: 5000 };
const get = (init: Partial<EgressInit> = {}): EgressInit => ({
  method: 'GET',
  headers: {},
  timeouts: TIMEOUTS,
  ...init,
});

async function failure(act: Promise<unknown>): Promise<EgressErrorCode | 'none'> {
  try {
    await act;
    return 'none';
  } catch (error) {
    if (!(error instanceof EgressError)) throw error;
    return error.code;
  }
}

const read = async ({ body }: EgressResponse) => (body ? await new Response(body).text() : '');

/** Waits for what must happen; a test that waits in vain runs into the runner's own limit. */
async function until(isTrue: () => boolean): Promise<void> {
  while (!isTrue()) await Bun.sleep(5);
}

const lanes = {
  /** An allowed literal, which goes out through `fetch`. */
  direct: async (options: Partial<EgressOptions> = {}) => {
    const upstream = await listen(false);
    const egress = makeEgress({ allow: parseAllowList('127.0.0.0/8'), ...options });
    const send = (path: string, init?: Partial<EgressInit>) =>
      egress(new URL(`http://127.0.0.1:${upstream.port}${path}`), get(init));
    return { upstream, send };
  },
  /** A name that resolves to a checked address, over TLS. */
  pinned: async (options: Partial<EgressOptions> = {}) => {
    const upstream = await listen(true);
    const resolve = async () => ['127.0.0.1'];
    const egress = makeEgress({ allow: parseAllowList('127.0.0.1/32'), resolve, ca, ...options });
    const send = (path: string, init?: Partial<EgressInit>) =>
      egress(new URL(`https://${NAME}:${upstream.port}${path}`), get(init));
    return { upstream, send };
  },
};

describe.each(Object.entries(lanes))('the %s lane', (_name, open) => {
  test('sends method, headers and body, and hands back status, headers and body', async () => {
    const { upstream, send } = await open();
    const body = new TextEncoder().encode('{"a":1}');
    const headers = {
      'x-a': '1',
      Host: 'elsewhere.test',
      'Content-Length': '3',
      connection: 'upgrade',
    };
    const response = await send('/ok', { method: 'POST', headers, body });
    expect([response.status, await read(response)]).toEqual([200, 'ok']);
    expect(response.headers.getSetCookie()).toEqual(['a', 'b']);
    const [request = ''] = upstream.requests;
    expect(request).toStartWith('POST /ok HTTP/1.1\r\n');
    expect(request).toEndWith('\r\n\r\n{"a":1}');
    expect(request).toMatch(/\r\nx-a: 1\r\n/i);
    expect(request).toMatch(/\r\naccept-encoding: identity\r\n/i);
    expect(request.match(/\r\ncontent-length: /gi)?.length).toBe(1);
    expect(request).not.toMatch(/elsewhere|upgrade/i);
  });

  test('hands a redirect back and does not follow it', async () => {
    const { upstream, send } = await open();
    const response = await send('/redirect');
    expect([response.status, response.headers.get('location')]).toEqual([307, 'http://127.0.0.2/']);
    await read(response);
    expect(upstream.requests.length).toBe(1);
  });

  test('has no body for 204', async () => {
    const { send } = await open();
    const response = await send('/empty');
    expect([response.status, await read(response)]).toEqual([204, '']);
  });

  test('uses a connection again', async () => {
    const { upstream, send } = await open();
    for (let call = 0; call < 5; call++) {
      await read(await send('/ok'));
      await Bun.sleep(2);
    }
    expect([upstream.requests.length, upstream.used.size]).toEqual([5, 1]);
  });

  test.each(['/short-length', '/short-chunks', '/short-gzip'])(
    'a body cut short (%s) is an error and never a clean end',
    async (path) => {
      const { send } = await open();
      expect(await failure(send(path).then(read))).toBe('broken');
    },
  );

  test('a connection closed before the headers is an error', async () => {
    const { send } = await open();
    expect(await failure(send('/hang-up', { method: 'POST', body: new Uint8Array(1) }))).toBe(
      'broken',
    );
  });

  test.each(Object.keys(ENCODERS))('decodes %s that was not asked for', async (encoding) => {
    const { send } = await open();
    const response = await send(`/${encoding}`);
    expect(response.headers.has('content-encoding')).toBe(false);
    expect(response.headers.has('content-length')).toBe(false);
    expect(await read(response)).toBe(PLAIN);
  });

  test('a body that decodes to more than allowed is an error', async () => {
    const { send } = await open({ maxDecodedBytes: PLAIN.length - 1 });
    expect(await failure(send('/gzip').then(read))).toBe('too_large');
  });

  test('an unknown content-encoding is an error', async () => {
    const { upstream, send } = await open();
    expect(await failure(send('/odd'))).toBe('broken');
    await until(() => upstream.open.size === 0);
  });

  // A time-out of more than a second is timed otherwise than a shorter one.
  test.each([30, 1_100])('gives up when the headers are late: %d ms', async (firstByteMs) => {
    const { upstream, send } = await open();
    const timeouts = { ...TIMEOUTS, connectMs: 500, firstByteMs };
    expect(await failure(send('/silent', { timeouts }))).toBe('timeout_first_byte');
    await until(() => upstream.open.size === 0);
  });

  test('gives up when the body stalls', async () => {
    const { upstream, send } = await open();
    const response = await send('/stall', { timeouts: { ...TIMEOUTS, idleMs: 30 } });
    expect(await failure(read(response))).toBe('timeout_idle');
    await until(() => upstream.open.size === 0);
  });

  test('a reader that takes its time is not an idle upstream', async () => {
    const { send } = await open();
    const response = await send('/pause', { timeouts: { ...TIMEOUTS, idleMs: 60 } });
    const reader = response.body?.getReader();
    expect(new TextDecoder().decode((await reader?.read())?.value)).toBe('part');
    await Bun.sleep(150);
    expect(new TextDecoder().decode((await reader?.read())?.value)).toBe('part');
    expect((await reader?.read())?.done).toBe(true);
  });

  test('an abort before the headers closes the connection', async () => {
    const { upstream, send } = await open();
    const controller = new AbortController();
    const sent = failure(send('/silent', { signal: controller.signal }));
    await until(() => upstream.requests.length === 1);
    controller.abort();
    expect(await sent).toBe('aborted');
    await until(() => upstream.open.size === 0);
    expect(await failure(send('/ok', { signal: controller.signal }))).toBe('aborted');
  });

  test('an abort in the body closes the connection and breaks the stream', async () => {
    const { upstream, send } = await open();
    const controller = new AbortController();
    const reader = (await send('/stall', { signal: controller.signal })).body?.getReader();
    await reader?.read();
    const next = failure(reader?.read() ?? Promise.resolve());
    controller.abort();
    expect(await next).toBe('aborted');
    await until(() => upstream.open.size === 0);
  });

  test('a reader that leaves closes the connection', async () => {
    const { upstream, send } = await open();
    const reader = (await send('/stall')).body?.getReader();
    await reader?.read();
    await reader?.cancel();
    await until(() => upstream.open.size === 0);
  });

  test('a reader that stops reading stops the upstream from sending', async () => {
    const { upstream, send } = await open();
    const reader = (await send('/big')).body?.getReader();
    await reader?.read();
    for (let before = -1; before !== upstream.writtenBytes; ) {
      before = upstream.writtenBytes;
      await Bun.sleep(100);
    }
    expect(upstream.writtenBytes).toBeLessThan(BIG_BYTES / 4);
    await reader?.cancel();
    await until(() => upstream.open.size === 0);
  });

  test('a large body arrives whole', async () => {
    const { send } = await open();
    let bytes = 0;
    for await (const chunk of (await send('/big')).body ?? []) bytes += chunk.byteLength;
    expect(bytes).toBe(BIG_BYTES);
  });
});

const nowhere: Egress = makeEgress({
  allow: parseAllowList(''),
  resolve: async () => {
    throw new Error('a refused URL was resolved');
  },
});

describe('which URLs are refused', () => {
  test.each([
    ['http://example.com/', 'forbidden_url'],
    ['ftp://example.com/', 'forbidden_url'],
    ['file:///etc/passwd', 'forbidden_url'],
    ['data:text/plain,a', 'forbidden_url'],
    ['https://user@example.com/', 'forbidden_url'],
    ['https://:pass@example.com/', 'forbidden_url'],
  ] as const)('%s', async (url, code) => {
    expect(await failure(nowhere(new URL(url), get()))).toBe(code);
  });

  const SPECIAL = ['0.0.0.0', '10.1.2.3', '127.0.0.1', '169.254.169.254', '100.64.0.1'];
  const MORE = ['172.16.0.1', '192.168.1.1', '224.0.0.1', '255.255.255.255', '168.63.129.16'];
  const notations = (address: string): string[] => {
    const bytes = address.split('.').map(Number);
    const [a = 0, b = 0, c = 0, d = 0] = bytes;
    const whole = ((a * 256 + b) * 256 + c) * 256 + d;
    const [high, low] = [a * 256 + b, c * 256 + d].map((part) => part.toString(16));
    const wide = [...address].map((char) => (char === '.' ? '。' : char)).join('');
    return [
      address,
      `${address}.`,
      String(whole),
      `0x${whole.toString(16)}`,
      `0${whole.toString(8)}`,
      bytes.map((byte) => `0x${byte.toString(16)}`).join('.'),
      bytes.map((byte) => `0${byte.toString(8)}`).join('.'),
      `${a}.${b}.${c * 256 + d}`,
      `${a}.${(b * 256 + c) * 256 + d}`,
      wide,
      `[::ffff:${address}]`,
      `[::ffff:${high}:${low}]`,
      `[::${address}]`,
      `[64:ff9b::${address}]`,
      `[2002:${high}:${low}::1]`,
      `[2001:0:${high}:${low}::1]`,
    ];
  };
  test.each([...SPECIAL, ...MORE])('%s in every notation', async (address) => {
    for (const host of notations(address)) {
      const code = await failure(nowhere(new URL(`https://${host}/`), get()));
      expect([host, code]).toEqual([host, 'forbidden_address']);
    }
  });

  test.each(['[::1]', '[::]', '[fe80::1]', '[fc00::1]', '[fd00:ec2::254]', '[ff02::1]'])(
    'https://%s/',
    async (host) => {
      expect(await failure(nowhere(new URL(`https://${host}/`), get()))).toBe('forbidden_address');
    },
  );

  test('a zone is no URL at all', () => {
    expect(() => new URL('https://[fe80::1%25eth0]/')).toThrow();
  });
});

describe('which addresses of a name are dialled', () => {
  const url = new URL(`https://${NAME}:1/`);
  const send = (answer: string[]) =>
    makeEgress({ allow: parseAllowList(''), resolve: async () => answer })(url, get());

  test.each([
    [['93.184.216.34', '10.0.0.1']],
    [['127.0.0.1', '93.184.216.34']],
    [['2606:4700::1111', '::1']],
    [['93.184.216.34', '::ffff:93.184.216.34']],
    [['93.184.216.34', 'fe80::1%eth0']],
    [['0x7f.1']],
    [['']],
  ])('none, when one is not public: %j', async (answer) => {
    expect(await failure(send(answer))).toBe('forbidden_address');
  });

  test('none, when there is none', async () => {
    expect(await failure(send([]))).toBe('unresolved');
  });

  test('none, when the resolver fails', async () => {
    const resolve = () => Promise.reject(new Error('SERVFAIL'));
    const egress = makeEgress({ allow: parseAllowList(''), resolve });
    expect(await failure(egress(url, get()))).toBe('unresolved');
  });

  test('none for localhost, by the system resolver', async () => {
    const egress = makeEgress({ allow: parseAllowList('') });
    expect(await failure(egress(new URL('https://localhost/'), get()))).toBe('forbidden_address');
  });

  test('the checked one, whatever the name resolves to a moment later', async () => {
    const right = await listen(true);
    const wrong = await listen(true, '127.0.0.2', right.port);
    const answers = [['127.0.0.1'], ['127.0.0.2'], ['127.0.0.2']];
    const resolve = async () => answers.shift() ?? [];
    const egress = makeEgress({ allow: parseAllowList('127.0.0.1/32'), resolve, ca });
    const target = new URL(`https://${NAME}:${right.port}/ok`);
    expect(await read(await egress(target, get()))).toBe('ok');
    expect(answers.length).toBe(2);
    for (const socket of right.open) socket.destroy();
    await until(() => right.open.size === 0);
    await Bun.sleep(20);
    expect(await failure(egress(target, get()))).toBe('forbidden_address');
    expect([right.requests.length, wrong.connections]).toEqual([1, 0]);
  });

  test('the next one, when the first does not answer', async () => {
    const upstream = await listen(true);
    const resolve = async () => ['127.0.0.3', '127.0.0.1'];
    const egress = makeEgress({ allow: parseAllowList('127.0.0.0/8'), resolve, ca });
    const target = new URL(`https://${NAME}:${upstream.port}/ok`);
    expect(await read(await egress(target, get()))).toBe('ok');
  });

  test.each([
    [15, 'ok'],
    [16, 'connect_failed'],
  ])('at most 16 of them: after %d that do not answer, %s', async (silent, outcome) => {
    const upstream = await listen(true);
    const others = Array.from({ length: silent }, (_, at) => `127.0.1.${at}`);
    const resolve = async () => [...others, '127.0.0.1'];
    const egress = makeEgress({ allow: parseAllowList('127.0.0.0/8'), resolve, ca });
    const sent = egress(new URL(`https://${NAME}:${upstream.port}/ok`), get()).then(read);
    expect(await (outcome === 'ok' ? sent : failure(sent))).toBe(outcome);
  });
});

describe('who is at the other end', () => {
  const resolve = async () => ['127.0.0.1'];
  const allow = parseAllowList('127.0.0.1/32');

  test('a certificate for another name is refused, also while a connection is kept', async () => {
    const upstream = await listen(true);
    const egress = makeEgress({ allow, resolve, ca });
    expect(await read(await egress(new URL(`https://${NAME}:${upstream.port}/ok`), get()))).toBe(
      'ok',
    );
    const other = new URL(`https://other.example.test:${upstream.port}/ok`);
    expect(await failure(egress(other, get()))).toBe('connect_failed');
    expect(upstream.requests.length).toBe(1);
  });

  test('a certificate of an unknown authority is refused', async () => {
    const upstream = await listen(true);
    const egress = makeEgress({ allow, resolve });
    const target = new URL(`https://${NAME}:${upstream.port}/ok`);
    expect(await failure(egress(target, get()))).toBe('connect_failed');
    expect(upstream.requests.length).toBe(0);
  });

  test('a peer that accepts and never shakes hands is given up', async () => {
    const upstream = await listen(false);
    const egress = makeEgress({ allow, resolve, ca });
    const target = new URL(`https://${NAME}:${upstream.port}/ok`);
    const timeouts = { ...TIMEOUTS, connectMs: 50 };
    expect(await failure(egress(target, get({ timeouts })))).toBe('timeout_connect');
    await until(() => upstream.open.size === 0);
  });

  test.each(['https://api.example.test', 'http://127.0.0.1'])(
    'a closed port is known as nothing sent: %s',
    async (origin) => {
      const { port } = await listen(false);
      await new Promise((resolve) => servers.pop()?.close(resolve));
      const egress = makeEgress({ allow, resolve, ca });
      expect(await failure(egress(new URL(`${origin}:${port}/`), get()))).toBe('connect_failed');
    },
  );
});

/** Listens, and accepts nothing: the system takes two connections for it, and lets others wait. */
const LISTEN_ONLY = `
  const { addr } = Deno.listen({ hostname: '127.0.0.1', port: 0, tcpBacklog: 1 });
  console.log('listening on', addr.port);
  Deno.kill(Deno.pid, 'SIGSTOP');`;

describe('a host that accepts no further connection', () => {
  const allow = parseAllowList('127.0.0.1/32');
  const timeouts = { ...TIMEOUTS, connectMs: 50, firstByteMs: 50 };
  let full: Running;
  let port = 0;
  beforeAll(async () => {
    const deno = fileURLToPath(new URL('../node_modules/.bin/deno', import.meta.url));
    full = await start([deno, 'eval', LISTEN_ONLY], { ready: /listening on (\d+)/ });
    port = Number(full.ready[1]);
    for (let taken = 0; taken < 2; taken++) await once(connect(port, '127.0.0.1'), 'connect');
  });
  afterAll(() => full?.stop('SIGKILL'));

  test.each([`https://${NAME}`, 'http://127.0.0.1', 'https://127.0.0.1'])(
    'is given up as one that was sent nothing: %s',
    async (origin) => {
      const egress = makeEgress({ allow, resolve: async () => ['127.0.0.1'], ca });
      const init = get({ timeouts, method: 'POST', body: new Uint8Array(1) });
      expect(await failure(egress(new URL(`${origin}:${port}/ok`), init))).toBe('timeout_connect');
    },
  );

  test('is left at once by a caller who gives up', async () => {
    const egress = makeEgress({ allow });
    for (const how of ['signal', 'controller']) {
      const leaving = new AbortController();
      const init = get(how === 'signal' ? { signal: leaving.signal } : { controller: leaving });
      const sent = failure(egress(new URL(`http://127.0.0.1:${port}/ok`), init));
      leaving.abort();
      expect(await sent).toBe('aborted');
    }
  });
});

describe('what the operator allows', () => {
  test('a host and port is that port alone', async () => {
    const upstream = await listen(false);
    const egress = makeEgress({ allow: parseAllowList(`localhost:${upstream.port}`) });
    const send = (host: string) => failure(egress(new URL(`http://${host}/ok`), get()).then(read));
    expect(await send(`localhost:${upstream.port}`)).toBe('none');
    expect(await send('localhost:1')).toBe('forbidden_url');
    expect(await send(`127.0.0.1:${upstream.port}`)).toBe('forbidden_url');
  });

  test('a name that resolves into an allowed range still needs https', async () => {
    const allow = parseAllowList('127.0.0.0/8');
    const egress = makeEgress({ allow, resolve: async () => ['127.0.0.1'] });
    expect(await failure(egress(new URL('http://llm.lan/'), get()))).toBe('forbidden_url');
  });
});
