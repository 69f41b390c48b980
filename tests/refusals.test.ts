/** Every refusal makes exactly one request, and its sentence reaches the developer, in every SDK. */

import { beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { findOrg } from '../db/orgs.ts';
import { createProviderKey } from '../db/provider-keys.ts';
import { readConfig } from '../functions/config.ts';
import { openKeys } from '../functions/keys.ts';
import { makeLog } from '../functions/log.ts';
import { formatToken, TOKEN_ENTROPY_BYTES } from '../schema/token.ts';
import { type Ask, CLIENTS, type Client } from './clients.ts';
import { type Deployment, readTrail } from './rungate.ts';
import { ALL_KINDS, KINDS, stages } from './runtimes.ts';

const UNKNOWN_TOKEN = formatToken('agent', new Uint8Array(TOKEN_ENTROPY_BYTES).fill(7));
/** A cent per million tokens would fit; this price fits no ceiling of a dollar. */
const PROHIBITIVE = '100000.00';
const TOO_LARGE = 'x'.repeat(33 * 1024 * 1024);
const LONG_RUN = 'x'.repeat(257);
/** The member that limits the output of each kind. */
const LIMITS = {
  chat: 'max_tokens',
  responses: 'max_output_tokens',
  messages: 'max_tokens',
} as const;

/** A way to be refused. */
interface Case {
  readonly name: string;
  readonly status: number;
  /** What the developer reads; without quotation marks, which some SDKs escape. */
  readonly sentence: string;
  readonly change?: (ask: Ask, rungate: Deployment) => Partial<Ask>;
  /** Brings the run into the state in which it is refused. */
  readonly arrange?: (ask: Ask) => Promise<unknown>;
  /** The denial on the run's trail; none where the run is not known. */
  readonly outcome?: string;
  readonly suits?: (client: Client) => boolean;
  /** What the error is called: its type and code at OpenAI, its type at Anthropic. */
  readonly terms: readonly [type: string, code: string, anthropicType: string];
}

const INVALID = 'invalid_request_error';
const UNAUTHENTICATED = [INVALID, 'invalid_api_key', 'authentication_error'] as const;
const UNPAID = ['insufficient_quota', 'insufficient_quota', 'billing_error'] as const;

const forbidden = (code: string) =>
  ['permission_error', `rungate_permission_${code}`, 'permission_error'] as const;

const post = ({ base, token }: Ask, path: string, body: object, headers: object = {}) =>
  fetch(`${base}${path}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, ...headers },
    body: JSON.stringify(body),
  });

const call = (ask: Ask, model: string, headers: object = {}) =>
  post(
    ask,
    '/v1/chat/completions',
    {
      ...{ model, max_tokens: 20 },
      messages: [{ role: 'user', content: 'x' }],
    },
    headers,
  );

async function complete(ask: Ask): Promise<void> {
  await call(ask, 'test-model');
  const { origin, pathname } = new URL(ask.base);
  await post({ ...ask, base: origin }, `/v1/runs/${pathname.slice(3)}/complete`, {});
}

const CASES: readonly Case[] = [
  {
    terms: UNAUTHENTICATED,
    ...{ name: 'an unknown token', status: 401, sentence: 'send a valid rg_agt_… token' },
    change: () => ({ token: UNKNOWN_TOKEN }),
  },
  {
    terms: UNAUTHENTICATED,
    ...{ name: 'a mistyped token', status: 401, sentence: 'send a valid rg_agt_… token' },
    change: ({ token }) => ({ token: `${token.slice(0, -1)}${token.endsWith('0') ? 1 : 0}` }),
  },
  {
    terms: forbidden('agent_suspended'),
    ...{ name: 'a suspended agent', status: 403, sentence: 'is suspended.' },
    change: (_, { tokens }) => ({ token: tokens.suspended ?? '' }),
  },
  {
    terms: UNAUTHENTICATED,
    ...{ name: 'a revoked token', status: 401, sentence: 'expired or revoked' },
    change: (_, { tokens }) => ({ token: tokens.revoked ?? '' }),
  },
  {
    terms: UNPAID,
    ...{ name: 'a call that does not fit its budget', status: 402, sentence: 'start a new run.' },
    ...{ change: () => ({ model: 'dear-model' }), outcome: 'budget_exceeded' },
  },
  {
    terms: UNPAID,
    ...{
      name: 'a run that its budget has stopped',
      status: 402,
      sentence: 'has used up its budget',
    },
    ...{ arrange: (ask) => call(ask, 'dear-model'), outcome: 'budget_exceeded' },
  },
  {
    terms: forbidden('denied'),
    ...{ name: 'a denied model', status: 403, sentence: 'The policy denies the model' },
    ...{ change: () => ({ model: 'denied-model' }), outcome: 'permission_denied' },
  },
  {
    terms: forbidden('unpriced_model'),
    ...{ name: 'a model without a price', status: 403, sentence: 'has no known price' },
    ...{ change: () => ({ model: 'unpriced-model' }), outcome: 'unpriced_model' },
  },
  {
    terms: forbidden('denied'),
    ...{
      name: 'a built-in model that is off',
      status: 403,
      sentence: 'RUNGATE_DEMO=on turns it on',
    },
    ...{ change: () => ({ model: 'demo/demo-large' }), outcome: 'permission_denied' },
  },
  {
    terms: forbidden('denied'),
    ...{ name: 'an upstream behind a wall', status: 403, sentence: 'operator does not allow' },
    change: () => ({ model: 'walled-model' }),
  },
  {
    terms: forbidden('route'),
    ...{ name: 'a route that is not forwarded', status: 403, sentence: 'could not be governed.' },
    ...{ change: ({ base }) => ({ base: `${base}/realtime` }), outcome: 'route_denied' },
  },
  {
    terms: forbidden('run_closed'),
    ...{
      name: 'a run that is completed',
      status: 403,
      sentence: 'is completed; use a new run id.',
    },
    ...{ arrange: complete, outcome: 'run_closed' },
  },
  {
    terms: [INVALID, 'rungate_invalid_body', INVALID],
    ...{ name: 'an ambiguous body', status: 400, sentence: 'Model' },
    change: () => ({ extra: { Model: 'dear-model' } }),
    suits: ({ takesExtra }) => takesExtra,
  },
  {
    terms: [INVALID, 'rungate_invalid_request', INVALID],
    ...{
      name: 'a run id that is too long',
      status: 400,
      sentence: 'must have at most 256 characters',
    },
    change: ({ base }) => ({ base: base.replace(/\/r\/.*/, `/r/${LONG_RUN}`) }),
  },
  {
    terms: [INVALID, 'rungate_body_too_large', 'request_too_large'],
    ...{
      name: 'a body that is too large',
      status: 413,
      sentence: 'The request body is larger than',
    },
    change: () => ({ prompt: TOO_LARGE }),
    // One client of each SDK: how a body is sent does not depend on what is in it.
    suits: ({ name }) =>
      /^(openai chat|anthropic messages|ai \S+|langchain chat|agents chat)$/.test(name),
  },
];

/** What SDKs offer and Rungate does not forward. */
const DENIED: Readonly<Record<string, (openai: OpenAI, anthropic: Anthropic) => Promise<unknown>>> =
  {
    'openai files': (openai) => openai.files.list(),
    'openai batches': (openai) => openai.batches.list(),
    'openai vector stores': (openai) => openai.vectorStores.list(),
    'openai conversations': (openai) => openai.conversations.create(),
    'openai containers': (openai) => openai.containers.list(),
    'openai images': (openai) => openai.images.generate({ model: 'test-model', prompt: 'a gate' }),
    'anthropic batches': (_, anthropic) => anthropic.messages.batches.list(),
    'anthropic files': (_, anthropic) => anthropic.beta.files.list(),
  };

type Fields = Readonly<Record<string, string>>;

/** Requests that are refused for their form, whatever the run that they belong to. */
const MALFORMED: Readonly<
  Record<string, readonly [number, (text: string, headers: Fields, limit: string) => RequestInit]>
> = {
  'a repeated key': [
    400,
    (text, headers) => ({ headers, body: text.replace('{', '{"model":"x",') }),
  ],
  'a limit below zero': [
    400,
    (text, headers, limit) => ({ headers, body: text.replace(`"${limit}":10`, `"${limit}":-1`) }),
  ],
  'an unknown encoding': [
    400,
    (text, headers) => ({ headers: { ...headers, 'content-encoding': 'br' }, body: text }),
  ],
  'headers that are too long': [
    400,
    (text, headers) => ({ headers: { ...headers, 'x-long': 'x'.repeat(33_000) }, body: text }),
  ],
  'a body that is too large': [413, (_, headers) => ({ headers, body: TOO_LARGE })],
};

/** Ways to name a run beside the body. */
const NAMED = [
  (name: string) => ({ name, path: '', headers: { 'x-rungate-run-id': encodeURI(name) } }),
  (name: string) => ({ name, path: `/r/${encodeURIComponent(name)}`, headers: {} }),
  (name: string) => ({
    ...{ name: encodeURI(name), path: '' },
    headers: { 'session-id': encodeURI(name) },
  }),
];

async function failureOf(act: () => Promise<unknown>): Promise<Error> {
  try {
    await act();
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
  throw new Error('the call was not refused');
}

const slug = (...names: string[]) => names.join(' ').replaceAll(/\W+/g, '-');

/** What every deployment of this file has. */
const WANTED = {
  env: { RUNGATE_DEMO: 'off' },
  agents: ['tester', 'suspended', 'revoked'],
  policy: { models: { deny: ['*/denied-model'] }, budget: { run: '1.00' } },
  prices: ['openai/dear-model', 'anthropic/dear-model'].map((model) => ({
    ...{ model, inputPerMillion: PROHIBITIVE, outputPerMillion: PROHIBITIVE },
  })),
};

/** Upstreams that were allowed once, and are no more: one is not https, one at no public address. */
async function wall({ database, folder, cli }: Deployment): Promise<void> {
  const config = readConfig({ RUNGATE_DATABASE_URL: `file:${folder}/rungate.db` });
  const db = await database();
  const org = (await findOrg(db, 'acme'))!;
  const master = await openKeys(config, makeLog('silent'));
  for (const [provider, baseUrl] of [
    ['openai', 'http://10.0.0.1/v1'],
    ['anthropic', 'https://10.0.0.1/v1'],
  ] as const) {
    const key = { name: `walled-${provider}`, provider, baseUrl, secret: 'a-secret' };
    await createProviderKey(org, master, 'operator', { ...key, serviceTier: 'default' });
  }
  await db.close();
  const prices = ['openai', 'anthropic'].map((provider) => ({
    ...{ model: `walled-${provider}/walled-model`, inputPerMillion: '1', outputPerMillion: '1' },
  }));
  await Bun.write(join(folder, 'prices.json'), JSON.stringify({ prices }));
  const { code } = await cli('apply', join(folder, 'prices.json'), '--org', 'acme');
  expect(code).toBe(0);
}

describe.each(stages(WANTED))('on $runtime', (stage) => {
  beforeAll(async () => {
    await wall(stage.rungate);
    await stage.rungate.cli('agent', 'suspend', 'suspended', '--org', 'acme');
    await stage.rungate.cli('agent', 'token', 'revoke', 'revoked', '--org', 'acme');
  });

  /** The one request that was made, which never went further. */
  const expectOne = (status: number) => {
    expect(stage.witness.exchanges.map((exchange) => exchange.status)).toEqual([status]);
    const headers = stage.witness.exchanges[0]?.headers;
    expect(headers?.get('x-should-retry')).toBe('false');
    expect(headers?.get('x-request-id')).toMatch(/^req_\w{26}$/);
    expect(stage.upstream.requests).toBeEmpty();
    return headers;
  };

  const forget = () => {
    stage.witness.exchanges.length = 0;
    stage.upstream.requests.length = 0;
  };

  for (const refusal of CASES) {
    const { name, status, sentence, change, arrange, outcome, suits = () => true } = refusal;
    describe(`${name} is ${status}`, () => {
      for (const client of CLIENTS.filter(suits)) {
        test(`after one request of ${client.name}`, async () => {
          const run = slug(name, client.name);
          const ask = { base: `${stage.rungate.url}/r/${run}`, token: stage.rungate.token };
          await arrange?.(ask);
          forget();
          const seen = { ...ask, base: `${stage.witness.url}/r/${run}` };
          const changed = { ...seen, ...change?.(seen, stage.rungate) };
          const error = await failureOf(() => client.ask(changed));
          expect(error.message).toContain(sentence);
          const headers = expectOne(status);
          if (!outcome) return;
          expect(headers?.get('x-rungate-run-id')).toBe(run);
          const last = (await readTrail(stage.rungate, run)).at(-1);
          expect(last).toMatchObject({ kind: 'denial', outcome, httpStatus: status });
        });
      }
    });
  }

  for (const refusal of CASES) {
    const { name, status, sentence, change, arrange, outcome, terms } = refusal;
    for (const kind of ALL_KINDS) {
      test(`${name} has its terms in the dialect of ${kind}, streamed or not`, async () => {
        const [type, code, anthropicType] = terms;
        const isAnthropic = kind === 'messages';
        for (const stream of [false, true]) {
          const run = slug('terms', name, kind, String(stream));
          const ask = { base: `${stage.rungate.url}/r/${run}`, token: stage.rungate.token };
          await arrange?.(ask);
          const changed: Ask = { ...ask, ...change?.(ask, stage.rungate) };
          const { model = 'test-model', prompt = 'hello', extra } = changed;
          const body = { ...KINDS[kind].body, ...extra, model, stream, user: prompt };
          const response = await post(changed, KINDS[kind].path, body, KINDS[kind].headers);
          expect(response.status).toBe(status);
          expect(response.headers.get('content-type')).toBe('application/json');
          const answer = (await response.json()) as { error: Record<string, unknown> };
          expect(answer.error).toMatchObject({
            ...{ message: expect.stringContaining(sentence) },
            ...(isAnthropic ? { type: anthropicType } : { type, code }),
            rungate: outcome ? { code: outcome, runId: run, rule: expect.any(String) } : {},
          });
          expect(answer).toMatchObject(isAnthropic ? { type: 'error' } : {});
        }
      });
    }
  }

  for (const [name, [status, send]] of Object.entries(MALFORMED)) {
    for (const kind of ALL_KINDS) {
      test(`${name} of ${kind} is told with the run that the caller named`, async () => {
        const { path, body, headers } = KINDS[kind];
        const text = JSON.stringify({ ...body, [LIMITS[kind]]: 10 });
        for (const named of NAMED) {
          const run = named('mälformed 1');
          const given = { authorization: `Bearer ${stage.rungate.token}`, ...headers };
          const init = send(text, { ...given, ...run.headers }, LIMITS[kind]);
          const url = `${stage.rungate.url}${run.path}${path}`;
          const response = await fetch(url, { method: 'POST', ...init });
          expect(response.status).toBe(status);
          expect(response.headers.get('x-rungate-run-id')).toBe(encodeURI(run.name));
          expect(await response.json()).toMatchObject({ error: { rungate: { runId: run.name } } });
        }
      });
    }
  }

  test('a run is not named to whoever has no valid token, nor in a name that is none', async () => {
    const send = (token: string, run: string) =>
      call({ base: stage.rungate.url, token }, 'test-model', { 'x-rungate-run-id': run });
    for (const [token, run, status] of [
      [UNKNOWN_TOKEN, 'mine', 401],
      [stage.rungate.tokens.revoked ?? '', 'mine', 401],
      [stage.rungate.token, LONG_RUN, 400],
    ] as const) {
      const { headers, status: told } = await send(token, run);
      expect([told, headers.get('x-rungate-run-id')]).toEqual([status, null]);
    }
  });

  for (const [name, act] of Object.entries(DENIED)) {
    test(`${name} are denied in one request`, async () => {
      forget();
      const apiKey = stage.rungate.token;
      const openai = new OpenAI({ apiKey, baseURL: `${stage.witness.url}/v1` });
      const anthropic = new Anthropic({ apiKey, baseURL: stage.witness.url });
      const error = await failureOf(async () => await act(openai, anthropic));
      expect(error.message).toContain('could not be governed.');
      expectOne(403);
    });
  }
});
