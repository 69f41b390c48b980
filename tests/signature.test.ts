/** Signatures: others accept ours and we accept theirs, and nothing that was tampered with passes. */

import { afterAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import { createHmac } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { Webhook as StandardWebhook } from 'standardwebhooks';
import Stripe from 'stripe';
import { hmac } from '../db/seal.ts';
import {
  JITTER,
  MAX_RETRY_AFTER_MS,
  RETRY_DELAYS_MS,
  retryDelay,
} from '../schema/rules/schedule.ts';
import { formatSecret, secretKey, signatureHeaders } from '../schema/signature.ts';
import { type VerifyOptions, verifyWebhook, WebhookError } from '../web/sdk/index.ts';
import { startReceiver } from './receiver.ts';

setDefaultTimeout(60_000);

const ROOT = join(import.meta.dir, '..');
const folder = mkdtempSync(join(tmpdir(), 'rungate-signature-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const random = () => formatSecret(crypto.getRandomValues(new Uint8Array(32)));
const SECRET = random();
const OTHER = random();
const NOW = 1_800_000_000_000;
const TIMESTAMP_S = NOW / 1_000;
const EVENT_ID = 'evt_01j9z0c4m2n8v5x7b3k6w1q0ta';
const BODY = `{"id":"${EVENT_ID}","type":"run.started","data":{"name":"ünïcode \\u2028 \u{1f600}"}}`;

type Headers = Record<string, string>;

function sign(body = BODY, secrets = [SECRET], timestampS = TIMESTAMP_S): Headers {
  return signatureHeaders({ eventId: EVENT_ID, timestampS, body, secrets }, hmac);
}

const only = (headers: Headers, prefix: string): Headers =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => name.startsWith(prefix)));

const SCHEMES = ['x-rungate-', 'webhook-'] as const;

/** The code of the refusal, or `ok`. */
async function verdict(
  body: string | Uint8Array,
  headers: Parameters<typeof verifyWebhook>[1],
  secrets: string | readonly string[] = SECRET,
  options: VerifyOptions = { now: NOW },
): Promise<string> {
  try {
    await verifyWebhook(body, headers, secrets, options);
    return 'ok';
  } catch (error) {
    if (!(error instanceof WebhookError)) throw error;
    const shown = JSON.stringify([error.message, error.stack]);
    for (const secret of [secrets].flat()) {
      if (secret.length > 8) expect(shown).not.toContain(secret.slice(6));
    }
    return error.code;
  }
}

/** Stripe's verifier, told our scheme: the same text is signed, under the bytes of the secret. */
class RawKeys extends Stripe.CryptoProvider {
  override computeHMACSignature(payload: string, secret: string): string {
    return createHmac('sha256', secretKey(secret)).update(payload, 'utf8').digest('hex');
  }
}

function stripeAccepts(body: string, headers: Headers, secret = SECRET): boolean {
  const header = `t=${headers['x-rungate-timestamp']},${headers['x-rungate-signature']}`;
  try {
    const tolerance = 300;
    Stripe.webhooks.signature!.verifyHeader(body, header, secret, tolerance, new RawKeys(), NOW);
    return true;
  } catch (error) {
    if (error instanceof Stripe.errors.StripeSignatureVerificationError) return false;
    throw error;
  }
}

/** The reference implementation has no clock to set: its own is moved. */
function standardAccepts(body: string, headers: Headers, secret = SECRET): boolean {
  const { now } = Date;
  Date.now = () => NOW;
  try {
    new StandardWebhook(secret).verify(body, headers, { jsonParse: false });
    return true;
  } catch {
    return false;
  } finally {
    Date.now = now;
  }
}

/** A change of one character to another of the same kind, so that only the value is wrong. */
const nudge = (text: string, at: number) => {
  const index = at % text.length;
  const character = text[index] === 'a' ? 'b' : 'a';
  return text.slice(0, index) + character + text.slice(index + 1);
};

describe('signatures of ours', () => {
  test('are accepted by verifiers of others, and by the shipped one in either scheme', async () => {
    await fc.assert(
      fc.asyncProperty(fc.json(), async (text) => {
        const body = `{"id":"${EVENT_ID}","data":${text}}`;
        const headers = sign(body);
        expect([stripeAccepts(body, headers), standardAccepts(body, headers)]).toEqual([
          true,
          true,
        ]);
        for (const scheme of SCHEMES) expect(await verdict(body, only(headers, scheme))).toBe('ok');
      }),
    );
  });

  test('during a rotation are accepted by who knows either secret', async () => {
    const headers = sign(BODY, [SECRET, OTHER]);
    for (const secret of [SECRET, OTHER]) {
      expect(stripeAccepts(BODY, headers, secret)).toBe(true);
      expect(standardAccepts(BODY, headers, secret)).toBe(true);
      for (const scheme of SCHEMES) {
        expect(await verdict(BODY, only(headers, scheme), secret)).toBe('ok');
      }
    }
    expect(await verdict(BODY, headers, random())).toBe('invalid_signature');
    expect(await verdict(BODY, sign(), [OTHER, SECRET])).toBe('ok');
  });

  test('are refused by all after any tampering', async () => {
    const good = sign();
    const tamper = fc.constantFrom(
      'body',
      'x-rungate-signature',
      'webhook-signature',
      'time',
      'key',
    );
    await fc.assert(
      fc.asyncProperty(tamper, fc.nat(10_000), async (what, at) => {
        const headers = { ...good };
        const body = what === 'body' ? BODY.slice(0, at % BODY.length) : BODY;
        if (what === 'time') {
          headers['x-rungate-timestamp'] = headers['webhook-timestamp'] = String(TIMESTAMP_S - 1);
        } else if (what in headers) {
          const start = headers[what]!.slice(0, 3);
          headers[what] = start + nudge(headers[what]!.slice(3, -2), at) + headers[what]!.slice(-2);
        }
        const secret = what === 'key' ? OTHER : SECRET;
        const own = await verdict(body, only(headers, 'x-rungate-'), secret);
        const standard = await verdict(body, only(headers, 'webhook-'), secret);
        const isOwn = what === 'webhook-signature' ? 'ok' : expect.stringMatching(/^invalid_/);
        const isStandard = what === 'x-rungate-signature' ? 'ok' : 'invalid_signature';
        expect([own, standard]).toEqual([isOwn, isStandard]);
        expect(stripeAccepts(body, headers, secret)).toBe(own === 'ok');
        expect(standardAccepts(body, headers, secret)).toBe(standard === 'ok');
      }),
    );
  });

  test('are made with a key that only the canonical text of a secret gives', () => {
    for (const text of [
      '',
      'whsec_',
      SECRET.slice(6),
      `${SECRET}=`,
      SECRET.slice(0, -1),
      'whsec_AAAA',
    ]) {
      expect(() => secretKey(text)).toThrow('not the secret of a webhook');
    }
    expect(secretKey(SECRET)).toHaveLength(32);
  });
});

describe('the shipped verifier', () => {
  // Published by Standard Webhooks with its libraries.
  const VECTOR = {
    secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
    body: '{"test": 2432232314}',
    now: 1_614_265_330_000,
    headers: {
      'webhook-id': 'msg_p5jXN8AQM9LWM0D4loKWxJek',
      'webhook-timestamp': '1614265330',
      'webhook-signature': 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=',
    },
  };

  test('accepts the published vector, alone and among signatures of other versions', async () => {
    const { body, headers, secret, now } = VECTOR;
    const signature = headers['webhook-signature'];
    for (const text of [signature, `v1a,AAAA v2,BBBB ${signature}`, `${signature} v1,AAAA`]) {
      const all = { ...headers, 'webhook-signature': text };
      expect(await verdict(body, all, secret, { now })).toBe('ok');
      expect(await verdict(body, all, secret.slice(6), { now })).toBe('ok');
    }
    const wrong = { ...headers, 'webhook-id': 'msg_other' };
    expect(await verdict(body, wrong, secret, { now })).toBe('invalid_signature');
  });

  test('knows HMAC-SHA-256 by its own vectors (RFC 4231)', () => {
    const key = new Uint8Array(20).fill(0x0b);
    expect(hmac(key, 'Hi There').toHex()).toBe(
      'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7',
    );
  });

  test('takes headers as fetch, Node and arrays have them, and bytes as well as text', async () => {
    const headers = sign();
    const upper = Object.fromEntries(
      Object.entries(headers).map(([name, value]) => [name.toUpperCase(), [value]]),
    );
    const pairs = Object.entries(headers);
    for (const each of [headers, upper, pairs, new Headers(headers), new Map(pairs)]) {
      expect(await verdict(new TextEncoder().encode(BODY), each)).toBe('ok');
    }
  });

  test('is told the time, and lets it be off by five minutes at most, either way', async () => {
    for (const offS of [-300, -299, 0, 299, 300]) {
      expect(await verdict(BODY, sign(BODY, [SECRET], TIMESTAMP_S + offS))).toBe('ok');
    }
    for (const offS of [-301, 301, -100_000, 100_000]) {
      const headers = sign(BODY, [SECRET], TIMESTAMP_S + offS);
      expect(await verdict(BODY, headers)).toBe('timestamp_out_of_range');
    }
    const late = sign(BODY, [SECRET], TIMESTAMP_S - 11);
    expect(await verdict(BODY, late, SECRET, { now: NOW, toleranceS: 10 })).toBe(
      'timestamp_out_of_range',
    );
    for (const toleranceS of [0, -1, 301, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(await verdict(BODY, sign(), SECRET, { now: NOW, toleranceS })).toBe('invalid_option');
    }
    expect(await verdict(BODY, sign(), SECRET, { now: Number.NaN })).toBe('invalid_option');
  });

  test.each([
    '',
    ' ',
    '1e9',
    '+1800000000',
    '-1',
    '1800000000.0',
    '0x6b49d200',
    '01800000000',
    '１８',
  ])('takes only whole seconds for a time, so not %p', async (text) => {
    const signature = createHmac('sha256', secretKey(SECRET)).update(`${text}.${BODY}`);
    const headers = {
      'x-rungate-timestamp': text,
      'x-rungate-signature': `v1=${signature.digest('hex')}`,
    };
    expect(await verdict(BODY, headers)).toBe('invalid_timestamp');
  });

  test.each([
    '',
    'whsec_',
    'whsec_c2hvcnQ=',
    'whsec_not base64!',
    'password',
    `whsec_${Buffer.alloc(32).toString('base64')}`,
    `whsec_${Buffer.alloc(32, 'ab').toString('base64')}`,
    `whsec_${Buffer.alloc(65, 'abcdefghijkl').toString('base64')}`,
  ])('refuses %p for a secret', async (secret) => {
    expect(await verdict(BODY, sign(), secret)).toBe('invalid_secret');
    expect(await verdict(BODY, sign(), [SECRET, secret])).toBe('invalid_secret');
  });

  test('refuses a secret that is not set, and a body that was parsed', async () => {
    for (const unset of [undefined, null, [undefined]] as unknown[] as string[]) {
      const verifying = verifyWebhook(BODY, sign(), unset, { now: NOW });
      await expect(verifying).rejects.toMatchObject({ code: 'invalid_secret' });
    }
    for (const parsed of [JSON.parse(BODY), { length: 0 }, [], null, undefined, 1]) {
      expect(await verdict(parsed as string, sign())).toBe('invalid_body');
    }
  });

  test('refuses no secrets, missing headers, headers twice, and what is no signature', async () => {
    const headers = sign();
    expect(await verdict(BODY, headers, [])).toBe('invalid_secret');
    expect(await verdict(BODY, {})).toBe('missing_header');
    const { 'x-rungate-signature': own = '', ...rest } = only(headers, 'x-rungate-');
    expect(await verdict(BODY, rest)).toBe('missing_header');
    const twice = [...Object.entries(only(headers, 'x-rungate-')), ['x-rungate-timestamp', '1']];
    expect(await verdict(BODY, twice as [string, string][])).toBe('invalid_timestamp');
    const hex = own.slice(3);
    for (const text of ['', hex, `v0=${hex}`, `v1=${hex.slice(2)}`, `v1=${hex.toUpperCase()}`]) {
      expect(await verdict(BODY, { ...rest, 'x-rungate-signature': text })).toBe('invalid_header');
    }
    const many = Array(17).fill(own).join(',');
    expect(await verdict(BODY, { ...rest, 'x-rungate-signature': many })).toBe('invalid_header');
    const long = `${own},${'v1=a,'.repeat(1_000)}`;
    expect(await verdict(BODY, { ...rest, 'x-rungate-signature': long })).toBe('invalid_header');
  });

  test('refuses an id beside the body that is not in it, and a body that is not JSON', async () => {
    const headers = { ...sign(), 'x-rungate-event-id': 'evt_other' };
    expect(await verdict(BODY, headers)).toBe('event_id_mismatch');
    const { 'x-rungate-event-id': _, ...signed } = only(sign('not json'), 'x-rungate-');
    expect(await verdict('not json', signed)).toBe('invalid_body');
  });

  const SDK = join(ROOT, 'web/sdk/index.ts');
  const plain = new Bun.Transpiler({ loader: 'ts' }).transformSync(readFileSync(SDK, 'utf8'));
  const INPUT = { body: BODY, headers: sign(), secret: SECRET, now: NOW };
  const PROGRAM = `const { body, headers, secret, now } = ${JSON.stringify(INPUT)};
const event = await verifyWebhook(body, headers, secret, { now });
const code = await verifyWebhook(body + ' ', headers, secret, { now }).catch((error) => error.code);
const said = event.id + ' ' + code;`;
  const SAID = `${EVENT_ID} invalid_signature`;

  test.each([
    ['bun', [process.execPath], SDK],
    ['deno', [join(ROOT, 'node_modules/.bin/deno'), 'run', '--allow-read'], SDK],
    // Not every Node takes types away by itself.
    ['node', ['node'], './sdk.mjs'],
  ])('runs on %s', (_, [command = '', ...args], sdk) => {
    if (!Bun.which(command)) return;
    writeFileSync(join(folder, 'sdk.mjs'), plain);
    const path = join(folder, 'program.mjs');
    const load = `import { verifyWebhook } from ${JSON.stringify(sdk)};`;
    writeFileSync(path, `${load}\n${PROGRAM}\nconsole.log(said);\n`);
    const { stdout } = Bun.spawnSync([command, ...args, path], { stderr: 'inherit' });
    expect(stdout.toString().trim()).toBe(SAID);
  });

  test.skipIf(!Bun.which('chromium'))('runs in a browser', async () => {
    const page = `<!doctype html><body><script type="module">
import { verifyWebhook } from './sdk.mjs';
${PROGRAM.replaceAll('</', '<\\/')}
document.body.textContent = said;
await fetch('/said', { method: 'POST', body: said });
</script>`;
    const { promise: said, resolve } = Promise.withResolvers<string>();
    const server = Bun.serve({
      hostname: '127.0.0.1',
      port: 0,
      async fetch(request) {
        const { pathname } = new URL(request.url);
        if (pathname === '/said') resolve(await request.text());
        const isCode = pathname === '/sdk.mjs';
        const type = isCode ? 'text/javascript' : 'text/html; charset=utf-8';
        return new Response(isCode ? plain : page, { headers: { 'content-type': type } });
      },
    });
    const browser = Bun.spawn(
      [
        'chromium',
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        `--user-data-dir=${folder}/chromium`,
        String(server.url),
      ],
      { stdout: 'ignore', stderr: 'ignore' },
    );
    try {
      const late = Bun.sleep(20_000).then(() => 'nothing');
      expect(await Promise.race([said, late])).toBe(SAID);
    } finally {
      browser.kill();
      await browser.exited;
      await server.stop(true);
    }
  });

  test('names nothing but the web platform', () => {
    expect(plain).not.toMatch(/\b(require|process|Buffer|Bun|Deno)\b|\bimport\b/);
  });
});

describe('the documented snippet', () => {
  const readme = readFileSync(join(ROOT, 'web/sdk/README.md'), 'utf8');
  const snippet = (language: string) =>
    new RegExp(`\`\`\`${language}\n([\\s\\S]*?)\`\`\``).exec(readme)?.[1] ?? '';
  const good = sign();
  const CASES: readonly (readonly [string, Headers, string])[] = [
    [BODY, good, 'ok'],
    [BODY, sign(BODY, [OTHER, SECRET]), 'ok'],
    [`${BODY} `, good, 'invalid_signature'],
    [BODY, sign(BODY, [OTHER]), 'invalid_signature'],
    [BODY, sign(BODY, [SECRET], TIMESTAMP_S - 301), 'timestamp_out_of_range'],
    [BODY, { ...good, 'x-rungate-timestamp': '1e9' }, 'invalid_timestamp'],
  ];

  test('in TypeScript tells good from bad', () => {
    const nowS = Math.floor(Date.now() / 1_000);
    const asked = [
      sign(BODY, [SECRET], nowS),
      sign(BODY, [OTHER], nowS),
      sign(BODY, [SECRET], nowS - 400),
    ];
    const program = `${snippet('ts').replace('./index.ts', join(ROOT, 'web/sdk/index.ts'))}
for (const headers of ${JSON.stringify(asked)}) {
  const init = { method: 'POST', body: ${JSON.stringify(BODY)}, headers };
  const response = await receive(new Request('http://localhost/', init), ${JSON.stringify(SECRET)});
  console.log(await response.text());
}`;
    const path = join(folder, 'snippet.ts');
    writeFileSync(path, program);
    const { stdout } = Bun.spawnSync([process.execPath, path], { stderr: 'inherit' });
    const said = stdout.toString().trim().split('\n');
    expect(said).toEqual(['got run.started', 'invalid_signature', 'timestamp_out_of_range']);
  });

  test.skipIf(!Bun.which('python3'))('in Python tells good from bad', () => {
    const path = join(folder, 'snippet.py');
    const program = `${snippet('python')}
import sys
for body, headers, _ in json.loads(sys.argv[1]):
    try:
        verify_webhook(body.encode(), headers, ${JSON.stringify(SECRET)}, ${TIMESTAMP_S})
        print("ok")
    except ValueError as error:
        print(error)
`;
    writeFileSync(path, program);
    const { stdout, stderr } = Bun.spawnSync(['python3', path, JSON.stringify(CASES)]);
    expect([stderr.toString(), stdout.toString().trim().split('\n')]).toEqual([
      '',
      CASES.map(([, , expected]) => expected),
    ]);
  });

  test.skipIf(!Bun.which('go'))('in Go tells good from bad', () => {
    writeFileSync(join(folder, 'go.mod'), 'module webhook\n\ngo 1.21\n');
    writeFileSync(join(folder, 'webhook.go'), snippet('go'));
    writeFileSync(
      join(folder, 'webhook_test.go'),
      `package webhook

import ("encoding/json"; "net/http"; "os"; "testing"; "time")

func TestCases(t *testing.T) {
	var cases [][3]json.RawMessage
	if err := json.Unmarshal([]byte(os.Getenv("CASES")), &cases); err != nil { t.Fatal(err) }
	for at, each := range cases {
		var body, expected string
		var headers map[string]string
		json.Unmarshal(each[0], &body)
		json.Unmarshal(each[1], &headers)
		json.Unmarshal(each[2], &expected)
		header := http.Header{}
		for name, value := range headers { header.Set(name, value) }
		got := "ok"
		if err := Verify([]byte(body), header, ${JSON.stringify(SECRET)}, time.Unix(${TIMESTAMP_S}, 0)); err != nil { got = err.Error() }
		if got != expected { t.Errorf("%d: %s, not %s", at, got, expected) }
	}
}
`,
    );
    const { exitCode, stdout, stderr } = Bun.spawnSync(['go', 'test', './...'], {
      cwd: folder,
      env: { ...process.env, CASES: JSON.stringify(CASES), GOFLAGS: '-mod=mod', GOPROXY: 'off' },
    });
    expect([exitCode, stdout.toString() + stderr.toString()]).toEqual([0, expect.any(String)]);
  });

  test.skipIf(!Bun.which('openssl') || !Bun.which('curl'))(
    'for curl and openssl sends what the verifier takes for genuine',
    async () => {
      const receiver = startReceiver();
      try {
        writeFileSync(join(folder, 'body.json'), BODY);
        const env = { ...process.env, SECRET, ENDPOINT: receiver.url };
        const child = Bun.spawn(['sh', '-euc', snippet('sh')], {
          cwd: folder,
          env,
          stderr: 'pipe',
        });
        expect([await child.exited, await new Response(child.stderr).text()]).toEqual([0, '']);
        const [got] = receiver.received;
        expect(await verdict(got!.body, got!.headers, SECRET, { now: got!.at })).toBe('ok');
      } finally {
        await receiver.stop();
      }
    },
  );
});

describe('the schedule of retries', () => {
  const attempt = fc.integer({ min: 1, max: RETRY_DELAYS_MS.length });
  const chance = fc.double({ min: 0, max: 0.999_999, noNaN: true });

  test('stays within a fifth of its delays, and ends', () => {
    fc.assert(
      fc.property(attempt, chance, (attempt, random) => {
        const off = retryDelay({ attempt, random })! / RETRY_DELAYS_MS[attempt - 1]!;
        expect(off).toBeGreaterThanOrEqual(1 - JITTER - 1e-9);
        expect(off).toBeLessThanOrEqual(1 + JITTER + 1e-9);
      }),
    );
    expect(retryDelay({ attempt: RETRY_DELAYS_MS.length + 1, random: 0 })).toBeUndefined();
    expect(RETRY_DELAYS_MS).toEqual(RETRY_DELAYS_MS.toSorted((a, b) => a - b));
  });

  test('is never shortened by an endpoint, and lengthened by a day at most', () => {
    fc.assert(
      fc.property(
        attempt,
        chance,
        fc.nat(10 * MAX_RETRY_AFTER_MS),
        (attempt, random, retryAfterMs) => {
          const plain = retryDelay({ attempt, random })!;
          const asked = retryDelay({ attempt, random, retryAfterMs })!;
          expect(asked).toBe(Math.max(plain, Math.min(retryAfterMs, MAX_RETRY_AFTER_MS)));
        },
      ),
    );
  });
});
