/** The same policy on every dialect, kind of call and way to send it, as a caller meets it over HTTP. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import { join } from 'node:path';
import type { Database } from '../db/client.ts';
import { decideGate } from '../db/gates.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import type { GateId } from '../schema/ids.ts';
import { bodyOf, FORMS, type Form, framesOf, proposalsOf, RULES } from './proposals.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { call, type Kind } from './runtimes.ts';
import { SCRIPT_HEADER, type Script, startUpstream, type Upstream } from './upstream.ts';

const KINDS: Readonly<Record<Form['endpoint'], Kind>> = {
  'chat.completions': 'chat',
  'responses.create': 'responses',
  messages: 'messages',
};

/** Where the decisive call stands; the others are allowed. */
const PLACES = [
  { place: 'alone', count: 1, at: 0 },
  { place: 'first of three', count: 3, at: 0 },
  { place: 'last of three', count: 3, at: 2 },
] as const;

/** One answer, and what a caller has to get of it before anything is decided. */
interface Cell {
  readonly title: string;
  readonly form: Form;
  readonly stream: boolean;
  /** Of the request: the former call of a function is one to each choice. */
  readonly members: Readonly<Record<string, unknown>>;
  readonly script: Script;
  /** The answer, and the part of it before the decisive call. */
  readonly whole: string;
  readonly open: string;
}

const CELLS = FORMS.flatMap((form) =>
  PLACES.flatMap((place) => [false, true].map((stream) => cellOf(form, place, stream))),
);

function cellOf(form: Form, { place, count, at }: (typeof PLACES)[number], stream: boolean): Cell {
  const { endpoint, label } = form;
  const title = `${endpoint} ${label}, ${place}, ${stream ? 'as a stream' : 'whole'}`;
  const proposals = proposalsOf(form, count, at);
  const members = { stream, ...(label === 'former' && count > 1 && { n: count }) };
  const cell = { title, form, stream, members };
  if (!stream) {
    const body = bodyOf(endpoint, proposals);
    return { ...cell, script: { body }, whole: body, open: '' };
  }
  const frames = framesOf(endpoint, proposals);
  const chunks = frames.map(({ text }) => text);
  const first = frames.findIndex(({ calls }) => calls.includes(at));
  const [whole, open] = [chunks.join(''), chunks.slice(0, first).join('')];
  return { ...cell, script: { chunks }, whole, open };
}

let upstream: Upstream;
let rungate: Deployment;
let db: Database;
let org: Org;
/** Of an agent per rule. */
let tokens: ReadonlyMap<string, string>;

const slug = (text: string) => text.replaceAll(/\W+/g, '-');

beforeAll(async () => {
  upstream = await startUpstream();
  rungate = await deploy({ upstreamUrl: upstream.url });
  db = await rungate.database();
  org = (await findOrg(db, 'acme'))!;
  const names = [...new Set(FORMS.flatMap((form) => form.names('drop_table')))];
  const rules = Object.entries(RULES).map(([rule, [, tools]]) => [slug(rule), tools] as const);
  const path = join(rungate.folder, 'rules.json');
  const manifest = {
    policies: rules.map(([name, tools]) => ({ name, document: { tools: tools(names) } })),
    agents: rules.map(([name]) => ({ name, policy: name })),
  };
  await Bun.write(path, JSON.stringify(manifest));
  const { stdout } = await rungate.cli('apply', path, '--org', 'acme', '--json');
  const made = JSON.parse(stdout) as { tokens: { agent: string; token: string }[] };
  tokens = new Map(made.tokens.map(({ agent, token }) => [agent, token]));
});

afterAll(async () => {
  await db?.close();
  await rungate?.stop();
  await upstream?.stop();
}, 20_000);

/** A header holds only ASCII. */
const asciiJson = (value: object) =>
  JSON.stringify(value).replaceAll(/[^\0-\x7f]/g, (unit) => {
    return `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });

function ask({ title, form, members, script }: Cell, rule: string, more = {}): Promise<Response> {
  const headers = { [SCRIPT_HEADER]: asciiJson(script), ...more };
  const token = tokens.get(slug(rule))!;
  const options = { run: slug(title), token, headers, members };
  return call({ rungate }, KINDS[form.endpoint], options);
}

interface Refused {
  readonly error: {
    readonly type: string;
    readonly code?: string;
    readonly rungate: {
      readonly code: string;
      readonly rule: string;
      readonly gates?: readonly { readonly id: GateId; readonly tool: string }[];
    };
  };
}

/** How each dialect ends a stream with an error. */
const ERROR_EVENTS: Readonly<Record<Form['endpoint'], RegExp>> = {
  'chat.completions': /^data: (\{.*\})\n\n$/,
  'responses.create': /^event: error\ndata: (\{"type":"error",.*\})\n\n$/,
  messages: /^event: error\ndata: (\{"type":"error",.*\})\n\n$/,
};

/** What of the calls no refusal may tell, be they denied or parallel to one that is. */
const CALLS = /call_\d|DROP|"q"/;

/** The refusal in the caller's dialect, in place of the decisive call and all that follows it. */
async function refusedOf({ form, stream, open }: Cell, response: Response) {
  const text = await response.text();
  expect(response.status).toBe(stream ? 200 : 403);
  expect(text.slice(0, open.length)).toBe(open);
  const rest = text.slice(open.length);
  expect(rest).not.toMatch(CALLS);
  const json = stream ? ERROR_EVENTS[form.endpoint].exec(rest)?.[1] : rest;
  const { error, ...about } = JSON.parse(json ?? rest) as Refused;
  expect(error.type).toBe('permission_error');
  if (form.endpoint === 'messages') expect(about).toMatchObject({ type: 'error' });
  else expect(error.code).toStartWith('rungate_permission_');
  return error.rungate;
}

async function expectAnswer({ stream, whole }: Cell, response: Response) {
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toStartWith(
    stream ? 'text/event-stream' : 'application/json',
  );
  // A stream whose caller waits says so in comments.
  const text = await response.text();
  expect(text.replaceAll(': waiting\n\n', '')).toBe(whole);
}

/** The model's work is charged once, whatever becomes of its calls. */
async function expectTrail({ title }: Cell, rule: string, further: readonly string[]) {
  const trail = await readTrail(rungate, slug(title), tokens.get(slug(rule)));
  // Steps of the same millisecond have no order.
  const told = trail.map(({ kind, outcome }) => `${kind} ${outcome}`).sort();
  expect(told).toEqual([...further, 'model_call ok'].sort());
  const charged = trail.filter(({ spentNanos }) => spentNanos > 0);
  expect(charged.map(({ kind }) => kind)).toEqual(['model_call']);
}

async function expectPending(cell: Cell, response: Response): Promise<GateId[]> {
  const { code, gates = [] } = await refusedOf(cell, response);
  expect(code).toBe('approval_pending');
  const names = cell.form.names('drop_table');
  // A call that clients run with one of several arguments is asked about with each of them.
  const versions = 1 + ((cell.stream && cell.form.alsoStreamed?.length) || 0);
  const asked = names.flatMap((name) => Array<string>(versions).fill(name));
  expect(gates.map(({ tool }) => tool).sort()).toEqual(asked.sort());
  return gates.map(({ id }) => id);
}

async function approve(gates: readonly GateId[]) {
  for (const id of gates) {
    await decideGate(org, id, { actor: 'operator', decision: 'approve' }, Date.now());
  }
}

function expectReleased(cell: Cell, rule: string, gates: readonly GateId[]) {
  const each = (outcome: string) => gates.map(() => outcome);
  const further = [...each('gate approval_pending'), ...each('gate approved'), 'gate released'];
  return expectTrail(cell, rule, further);
}

for (const [rule, [effect]] of Object.entries(RULES)) {
  const promises = {
    allow: 'reaches the caller as the upstream sent it',
    deny: 'is refused, and what comes before it passes',
    ask: 'is refused until it is approved, then reaches the caller as the upstream sent it',
  };
  describe.concurrent(`a call that is ${rule} ${promises[effect]}`, () => {
    for (const cell of CELLS) {
      test(cell.title, async () => {
        const response = await ask(cell, rule);
        if (effect === 'ask') {
          const gates = await expectPending(cell, response);
          await approve(gates);
          await expectAnswer(cell, await ask(cell, rule));
          return expectReleased(cell, rule, gates);
        }
        if (effect === 'allow') {
          await expectAnswer(cell, response);
          return expectTrail(cell, rule, []);
        }
        const { code, rule: why } = await refusedOf(cell, response);
        expect(code).toBe('permission_denied');
        expect(why).toMatch(/^tools\.(?:deny\[\d\]|allow)$/);
        await expectTrail(cell, rule, ['denial permission_denied']);
      });
    }
  });
}

/** The gates of a caller who waits, once they are there. */
async function gatesOf({ title }: Cell): Promise<GateId[]> {
  const sql = `select id from gates where org_id = ?1 and run_id in (
    select id from runs where org_id = ?1 and name = ?2
  )`;
  for (;;) {
    const rows = await org.read(sql, slug(title));
    if (rows.length > 0) return rows.map(({ id }) => id as GateId);
    await Bun.sleep(20);
  }
}

describe.concurrent('a call that is asked about reaches a caller who waits for the approval', () => {
  for (const { title, ...cell } of CELLS) {
    test(title, async () => {
      const waited = { ...cell, title: `waited for ${title}` };
      const response = ask(waited, 'asked about', { prefer: 'wait=60' });
      const gates = await gatesOf(waited);
      await approve(gates);
      await expectAnswer(waited, await response);
      await expectReleased(waited, 'asked about', gates);
    });
  }
});
