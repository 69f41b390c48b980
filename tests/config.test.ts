/** Configuration and the log: what is read, what is refused, and what is never written. */
import { afterAll, describe, expect, test } from 'bun:test';
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import {
  ConfigError,
  clientAddress,
  developmentKeyPath,
  developmentMasterKeys,
  readConfig,
} from '../functions/config.ts';
import { LOG_LEVELS, makeLog, REDACTED, redact } from '../functions/log.ts';
import { parseCidrList } from '../schema/address.ts';

const KEY = Buffer.from(Array.from({ length: 32 }, (_, at) => at * 7)).toString('base64');
const KEYS = `k2:${KEY},k1:${KEY}`;

function problems(env: Record<string, string>): readonly string[] {
  try {
    readConfig(env);
    return [];
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    for (const line of error.problems) expect(error.message).toContain(line);
    return error.problems;
  }
}

describe('readConfig()', () => {
  test('has a default for everything', () => {
    expect(readConfig({})).toEqual({
      port: 8787,
      host: '127.0.0.1',
      database: { url: 'file:.rungate/rungate.db', authToken: undefined, synchronous: 'full' },
      masterKeys: undefined,
      publicUrl: undefined,
      securityContact: undefined,
      trustedProxies: [],
      egressAllow: { hosts: new Set<string>(), cidrs: [] },
      schedulerSecret: undefined,
      mail: undefined,
      pricesUrl: undefined,
      retentionDays: null,
      deletionLedger: '.rungate/deleted-orgs.jsonl',
      keyShares: undefined,
      caps: { requestsPerMinute: undefined, concurrentCalls: undefined },
      adminRequestsPerMinute: 3_000,
      logLevel: 'info',
      isDemo: true,
      isIntrospected: true,
      isProduction: false,
    });
  });

  test('takes empty variables for unset ones, and ignores those of others', () => {
    expect(readConfig({ PORT: '', RUNGATE_LOG: ' ', PATH: '/bin' })).toEqual(readConfig({}));
  });

  test('reads every variable', () => {
    const config = readConfig({
      PORT: '0',
      HOST: '::',
      RUNGATE_DATABASE_URL: 'libsql://db.example.com',
      RUNGATE_DATABASE_AUTH_TOKEN: 'secret',
      RUNGATE_DATABASE_SYNCHRONOUS: 'normal',
      RUNGATE_MASTER_KEYS: KEYS,
      RUNGATE_PUBLIC_URL: 'https://gate.example.com/',
      RUNGATE_TRUSTED_PROXIES: '10.0.0.0/8,::1',
      RUNGATE_EGRESS_ALLOW: 'llm.lan:80',
      RUNGATE_SCHEDULER_SECRET: 'tick-'.repeat(8),
      RUNGATE_MAX_REQUESTS_PER_MINUTE: '600',
      RUNGATE_MAX_CONCURRENT_CALLS: '50',
      RUNGATE_MAX_ADMIN_REQUESTS_PER_MINUTE: '120',
      RUNGATE_PRICES_URL: 'http://llm.lan/prices.json?key=1',
      RUNGATE_RETENTION_DAYS: '30',
      RUNGATE_DELETION_LEDGER: '/var/lib/ledger.jsonl',
      RUNGATE_KEY_SHARES: '/var/lib/shares',
      RUNGATE_SMTP_URL: 'smtps://user:pass@mail.example.com:465',
      RUNGATE_MAIL_FROM: 'Rungate <rungate@example.com>',
      RUNGATE_LOG: 'debug',
      RUNGATE_DEMO: 'on',
      RUNGATE_INTROSPECTION: 'on',
      NODE_ENV: 'production',
    });
    expect(config).toMatchObject({
      port: 0,
      host: '::',
      database: { url: 'libsql://db.example.com', authToken: 'secret', synchronous: 'normal' },
      masterKeys: KEYS,
      publicUrl: 'https://gate.example.com',
      schedulerSecret: 'tick-'.repeat(8),
      pricesUrl: 'http://llm.lan/prices.json?key=1',
      mail: {
        smtpUrl: 'smtps://user:pass@mail.example.com:465',
        from: 'Rungate <rungate@example.com>',
      },
      caps: { requestsPerMinute: 600, concurrentCalls: 50 },
      adminRequestsPerMinute: 120,
      logLevel: 'debug',
      isDemo: true,
      isIntrospected: true,
      isProduction: true,
    });
    expect(config.trustedProxies.length).toBe(2);
    expect([...config.egressAllow.hosts]).toEqual(['llm.lan:80']);
  });

  test.each([
    ['PORT', ['65536', '-1', '80a', '1e3', '0x50']],
    ['HOST', ['a b', 'http://a']],
    [
      'RUNGATE_DATABASE_URL',
      [
        ...['rungate.db', 'file:', 'file:a.db?mode=ro', 'mysql://a', 'http://', 'wss://a'],
        // A host of another machine, a path that can't be one, and what SQLite keeps in no file.
        ...['file://otherhost/tmp/a.db', 'file:///a%2Fb.db', 'file::memory:', 'file:file:a.db'],
      ],
    ],
    ['RUNGATE_DATABASE_SYNCHRONOUS', ['off', 'FULL']],
    [
      'RUNGATE_PUBLIC_URL',
      ['gate.example.com', 'ftp://a', 'https://a/?q', 'https://u@a/', 'https://:p@a/'],
    ],
    ['RUNGATE_TRUSTED_PROXIES', ['10.0.0.0/33', 'proxy.lan', '*']],
    ['RUNGATE_EGRESS_ALLOW', ['*.lan', 'http://a', '10.0.0.0/33']],
    ['RUNGATE_MAX_REQUESTS_PER_MINUTE', ['0', '-1', '1e3', '1.5', '1000000000']],
    ['RUNGATE_MAX_CONCURRENT_CALLS', ['0', 'many']],
    ['RUNGATE_MAX_ADMIN_REQUESTS_PER_MINUTE', ['0', '-1', 'none']],
    [
      'RUNGATE_PRICES_URL',
      ['prices.json', 'ftp://a/b', 'https://u@a/', 'https://a/#b', 'http://a/'],
    ],
    ['RUNGATE_RETENTION_DAYS', ['0', '3651', '1.5', 'ever']],
    ['RUNGATE_DELETION_LEDGER', ['a\u0001b']],
    ['RUNGATE_KEY_SHARES', ['a\u0001b']],
    ['RUNGATE_SMTP_URL', ['http://mail.example.com', 'mail.example.com', 'smtp://a/b']],
    ['RUNGATE_MAIL_FROM', ['rungate', 'a@b', 'Rungate <x>', 'a@example.com\nBcc: b@example.com']],
    ['RUNGATE_LOG', ['verbose', 'INFO']],
    ['RUNGATE_DEMO', ['true', '1']],
  ] as const)('names %s and says what is wanted', (name, values) => {
    for (const value of values) {
      const [line = '', ...rest] = problems({ [name]: value });
      expect(
        rest.filter((other) => !/^RUNGATE_(MASTER_KEYS|MAIL_FROM is not set)/.test(other)),
      ).toEqual([]);
      expect(line).toStartWith(`${name} is `);
      expect(line).toContain('; wanted: ');
      if (!name.endsWith('_URL')) expect(line).toContain(JSON.stringify(value));
    }
  });

  test('lists all that is wrong', () => {
    const missing = problems({ PORT: 'x', NODE_ENV: 'production' });
    expect(missing.map((line) => line.split(' ')[0])).toEqual(['PORT', 'RUNGATE_MASTER_KEYS']);
    const lines = problems({ PORT: 'x', RUNGATE_LOG: 'x', RUNGATE_MASTER_KEYS: 'x' });
    expect(lines.map((line) => line.split(' ')[0])).toEqual([
      'PORT',
      'RUNGATE_MASTER_KEYS',
      'RUNGATE_LOG',
    ]);
  });

  test('never shows a secret', () => {
    const canary = 'canary-5eCr3t';
    const said = problems({
      RUNGATE_MASTER_KEYS: `a:${canary}`,
      RUNGATE_DATABASE_AUTH_TOKEN: `${canary} ${canary}`,
      RUNGATE_DATABASE_URL: `mysql://root:${canary}@db`,
      RUNGATE_PUBLIC_URL: `https://root:${canary}@gate`,
      RUNGATE_SMTP_URL: `smtp://root:${canary}@mail/path`,
      RUNGATE_MAIL_FROM: 'rungate@example.com',
    });
    expect(said.length).toBe(5);
    expect(said.join()).not.toContain(canary);
  });

  test.each([
    [{ NODE_ENV: 'production' }, true],
    [{ HOST: '0.0.0.0' }, true],
    [{ HOST: '::' }, true],
    [{ HOST: '192.168.1.5' }, true],
    [{ HOST: 'gate.lan' }, true],
    [{ HOST: '127.0.0.9' }, false],
    [{ HOST: '::1' }, false],
    [{ HOST: 'localhost', NODE_ENV: 'development' }, false],
  ])('with %j, master keys being needed is %p', (env, isNeeded) => {
    expect(problems(env).some((line) => line.startsWith('RUNGATE_MASTER_KEYS'))).toBe(isNeeded);
    const config = readConfig({ ...env, RUNGATE_MASTER_KEYS: KEYS });
    expect([config.isProduction, config.isDemo]).toEqual([isNeeded, !isNeeded]);
  });

  test('wants to know whom letters are from where there is a mail server', () => {
    const [line = ''] = problems({ RUNGATE_SMTP_URL: 'smtp://mail.example.com' });
    expect(line).toStartWith('RUNGATE_MAIL_FROM is not set');
    expect(problems({ RUNGATE_MAIL_FROM: 'rungate@example.com' })).toEqual([]);
  });

  test.each(['short', 'x'.repeat(513), `${'x'.repeat(40)} y`, 'é'.repeat(40)])(
    'takes only a long secret of visible ASCII for ticks, and does not repeat another: %p',
    (secret) => {
      const [line = ''] = problems({ RUNGATE_SCHEDULER_SECRET: secret });
      expect(line).toStartWith('RUNGATE_SCHEDULER_SECRET is a value that is not shown');
      expect(line).not.toContain(secret);
    },
  );

  test('either answers or throws a ConfigError, whatever it is given', () => {
    const names = ['PORT', 'HOST', 'RUNGATE_DATABASE_URL', 'RUNGATE_MASTER_KEYS', 'NODE_ENV'];
    const more = ['RUNGATE_PUBLIC_URL', 'RUNGATE_TRUSTED_PROXIES', 'RUNGATE_EGRESS_ALLOW'];
    const env = fc.dictionary(fc.constantFrom(...names, ...more), fc.string());
    fc.assert(fc.property(env, (given) => void problems(given)));
  });
});

describe('developmentMasterKeys()', () => {
  const folders: string[] = [];
  afterAll(() => Promise.all(folders.map((path) => rm(path, { recursive: true }))));
  const fresh = async () => {
    const folder = await mkdtemp(join(tmpdir(), 'rungate-config-'));
    folders.push(folder);
    return folder;
  };

  test('many at once end with one key, in one file that only its owner reads', async () => {
    const folder = join(await fresh(), 'made');
    const path = join(folder, 'master-keys');
    const lines: string[] = [];
    const log = makeLog('info', (line) => lines.push(line));
    const all = await Promise.all(
      Array.from({ length: 20 }, () => developmentMasterKeys(path, log)),
    );
    expect(new Set(all).size).toBe(1);
    expect(readConfig({ RUNGATE_MASTER_KEYS: all[0] }).masterKeys).toBe(all[0]);
    expect(await readdir(folder)).toEqual(['master-keys']);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(lines.length).toBe(1);
    expect(lines[0]).toContain(path);
    expect(lines[0]).not.toContain(all[0]?.slice(4) ?? '');
    expect(await developmentMasterKeys(path, log)).toBe(all[0] ?? '');
    expect(lines.length).toBe(1);
  });

  test('are different in every deployment', async () => {
    const log = makeLog('silent');
    const [a, b] = [join(await fresh(), 'k'), join(await fresh(), 'k')];
    expect(await developmentMasterKeys(a, log)).not.toBe(await developmentMasterKeys(b, log));
  });

  test('an empty file is refused, and not overwritten', async () => {
    const path = join(await fresh(), 'k');
    await writeFile(path, '');
    expect(developmentMasterKeys(path, makeLog('silent'))).rejects.toThrow(ConfigError);
  });

  test.each([
    ['file:.rungate/rungate.db', '.rungate/master-keys'],
    ['file:/var/lib/gate.db', '/var/lib/master-keys'],
    ['file:///var/lib/gate.db', '/var/lib/master-keys'],
    ['file:gate.db', 'master-keys'],
    ['file:///var/lib/a%20gate/gate.db', '/var/lib/a gate/master-keys'],
    ['https://db.example.com', '.rungate/master-keys'],
    ['libsql://db.example.com/x', '.rungate/master-keys'],
  ])('for %s they are in %s', (url, path) => expect(developmentKeyPath(url)).toBe(path));
});

describe('clientAddress()', () => {
  const trusted = parseCidrList('10.0.0.0/8, 2001:db8::/32');
  test.each([
    ['203.0.113.5', '198.51.100.1', '203.0.113.5'],
    ['::ffff:203.0.113.5', '198.51.100.1', '203.0.113.5'],
    ['10.0.0.1', null, '10.0.0.1'],
    ['10.0.0.1', '198.51.100.1', '198.51.100.1'],
    ['::ffff:10.0.0.1', '::ffff:198.51.100.1', '198.51.100.1'],
    ['10.0.0.1', '1.1.1.1, 198.51.100.1, 10.2.3.4', '198.51.100.1'],
    ['10.0.0.1', '10.9.9.9, 10.2.3.4', '10.9.9.9'],
    ['10.0.0.1', '198.51.100.1, junk', '10.0.0.1'],
    ['10.0.0.1', '198.51.100.1, junk, 10.2.3.4', '10.2.3.4'],
    ['10.0.0.1', '198.51.100.1:4711', '198.51.100.1'],
    ['2001:db8::1', '[2001:DB9::7]:4711', '2001:db9::7'],
    ['10.0.0.1', `${'6.6.6.6,'.repeat(9999)}198.51.100.1`, '198.51.100.1'],
    ['', '198.51.100.1', undefined],
  ])('from %s, forwarded for %.60s, is %s', (socket, forwarded, client) => {
    const headers = new Headers(forwarded === null ? {} : { 'x-forwarded-for': forwarded });
    expect(clientAddress(socket, headers, trusted)).toBe(client);
  });

  test('cannot be chosen by a client that is no proxy', () => {
    fc.assert(
      fc.property(fc.ipV4(), fc.ipV4(), (socket, claimed) => {
        fc.pre(!socket.startsWith('10.'));
        const headers = new Headers({ 'x-forwarded-for': claimed });
        expect(clientAddress(socket, headers, trusted)).toBe(socket);
      }),
    );
  });
});

describe('the log', () => {
  const capture = (level: (typeof LOG_LEVELS)[number]) => {
    const lines: string[] = [];
    return {
      lines,
      log: makeLog(
        level,
        (line) => lines.push(line),
        () => 0,
      ),
    };
  };

  test.each(LOG_LEVELS.map((level, at) => [level, at] as const))(
    'at %s writes %d levels',
    (level, count) => {
      const { lines, log } = capture(level);
      for (const name of ['error', 'warn', 'info', 'debug'] as const) log[name]('said');
      expect(lines.map((line) => JSON.parse(line).level)).toEqual(LOG_LEVELS.slice(1, count + 1));
    },
  );

  test('writes one line of JSON, with time, level and message that fields cannot replace', () => {
    const { lines, log } = capture('info');
    log.info('two\nlines', { level: 'x', time: 1, message: 'x', run: 'run_1', n: 1n });
    expect(lines).toEqual([
      '{"time":"1970-01-01T00:00:00.000Z","level":"info","message":"two\\nlines","run":"run_1","n":"1"}\n',
    ]);
  });

  const word = fc.stringMatching(/^[A-Za-z0-9]{24}$/);
  const secret = fc.oneof(
    word.map((text) => ({ canary: text, text: `rg_agt_${text}` })),
    word.map((text) => ({ canary: text, text: `rg_platform_${text}` })),
    word.map((text) => ({ canary: text, text: `sk-${text}` })),
    word.map((text) => ({ canary: text, text: `sk-ant-api03-${text}-x_` })),
    word.map((text) => ({ canary: text, text: `sk-proj-${text}` })),
    word.map((text) => ({ canary: text, text: `Bearer ${text}` })),
    word.map((text) => ({ canary: text, text: `authorization: bearer ${text}` })),
    word.map((text) => ({ canary: text, text: `authorization: Basic ${text}==` })),
    word.map((text) => ({ canary: text, text: `x-api-key: ${text}` })),
    word.map((text) => ({ canary: text, text: `{"x-api-key":"${text}"}` })),
    word.map((text) => ({ canary: text, text: `password=${text}` })),
    word.map((text) => ({ canary: text, text: `https://host/?key=${text}` })),
    word.map((text) => ({ canary: text, text: `https://user:${text}@host/` })),
    word.map((text) => ({ canary: text, text: `cookie: session=${text}` })),
    word.map((text) => ({
      canary: text,
      text: `dev:${Buffer.from(text.padEnd(32)).toString('base64')}`,
    })),
  );
  const wrappers: ((text: string) => unknown)[] = [
    (text) => text,
    (text) => ({ note: text }),
    (text) => ({ [text]: 1 }),
    (text) => [[{ deep: [text] }]],
    (text) => new Error(text),
    (text) => new Error('outer', { cause: new Error(text) }),
    (text) => Object.assign(new Error('own'), { detail: { text } }),
    (text) => new AggregateError([new Error(text)], 'many'),
    (text) => new Map([['note', text]]),
    (text) => new Set([text]),
    (text) => new Headers({ 'x-note': text }),
    (text) => JSON.stringify({ inner: JSON.stringify({ note: text }) }),
    (text) => Symbol(text),
    (text) => `${'word '.repeat(815)}${text}`,
    (text) => `${'x'.repeat(4090)}${text}`,
  ];

  test('never holds a secret, wherever it is and in what it is wrapped', () => {
    fc.assert(
      fc.property(secret, fc.constantFrom(...wrappers), fc.boolean(), (planted, wrap, first) => {
        const { lines, log } = capture('debug');
        const { text } = planted;
        if (first) log.error(`failed: ${text}`, { value: wrap(text) });
        else log.debug('failed', { value: wrap(`before ${text} after`) });
        expect(lines.length).toBe(1);
        expect(lines[0]).not.toContain(planted.canary);
        const encoded = Buffer.from(planted.canary).toString('base64').slice(0, 20);
        expect(lines[0]).not.toContain(encoded);
      }),
      { numRuns: 2000 },
    );
  });

  test('a text that is cut leaves no part of a secret behind', () => {
    for (let before = 4050; before < 4096; before++) {
      const text = redact(`${'x'.repeat(before - 1)} ${KEY}`);
      expect(text).not.toContain(KEY.slice(0, 1 + Math.min(8, 4095 - before)));
    }
  });

  test.each(['authorization', 'Proxy-Authorization', 'x-api-key', 'apiKey', 'api_key', 'cookie'])(
    'replaces the value of %s, whatever it looks like',
    (name) => {
      expect(redact({ a: { [name]: 'plain' } })).toEqual({ a: { [name]: REDACTED } });
      expect(redact([[name, 'plain']])).toEqual([[name, REDACTED]]);
    },
  );

  test.each(['set-cookie', 'authToken', 'masterKeys', 'RUNGATE_MASTER_KEYS', 'secret', 'body'])(
    'replaces the value of %s, whatever it looks like',
    (name) => expect(redact({ [name]: ['plain'] })).toEqual({ [name]: REDACTED }),
  );

  test('leaves ids, counts and sentences as they are', () => {
    const fields = {
      org: 'org_01hx3v9k2m4n5p6q7r8s9t0vwx',
      run: 'run_01hx3v9k2m4n5p6q7r8s9t0vwx',
      key_id: 'key_01hx3v9k2m4n5p6q7r8s9t0vwx',
      token_id: 'tok_01hx3v9k2m4n5p6q7r8s9t0vwx',
      input_tokens: 12,
      task: 'a task-oriented sentence about tokens and keys',
      ok: true,
      none: null,
    };
    expect(redact(fields)).toEqual(fields);
  });

  test('never fails, and never grows without bound', () => {
    const loop: Record<string, unknown> = {};
    loop.self = loop;
    const trap = {
      get bad(): string {
        throw new Error('no');
      },
    };
    for (const value of [loop, trap, new Date(Number.NaN), () => 1, new Uint8Array(9)]) {
      const { lines, log } = capture('info');
      log.info('x', { value });
      expect(JSON.parse(lines[0] ?? '')).toMatchObject({ message: 'x' });
    }
    const { lines, log } = capture('info');
    log.info('m'.repeat(1e6), { text: 't '.repeat(1e6), list: Array(1e5).fill('item') });
    expect(lines[0]?.length ?? 0).toBeLessThan(20_000);
  });
});
