/** Tool loops of the official SDKs at a gate: held, then given exactly what was approved, once. */

import { afterAll, beforeAll, describe, expect, test } from 'bun:test';
import type { Database } from '../db/client.ts';
import { decideGate, searchGates, type Verdict } from '../db/gates.ts';
import type { Org } from '../db/org.ts';
import { findOrg } from '../db/orgs.ts';
import type { GateId } from '../schema/ids.ts';
import { ANSWER, LOOPS, type Loop, ran } from './loops.ts';
import { type Exchange, type Recorder, record } from './recorder.ts';
import { type Deployment, deploy, readTrail } from './rungate.ts';
import { startUpstream, type Upstream } from './upstream.ts';

const POLICY = { tools: { requireApproval: [{ tool: 'add', expiresAfterS: 3_600 }] } };
const NAMES = Object.keys(LOOPS);

let upstream: Upstream;
/** Between the agents and Rungate, and between Rungate and the upstream. */
let front: Recorder;
let back: Recorder;
let rungate: Deployment;
let db: Database;
let org: Org;

beforeAll(async () => {
  upstream = await startUpstream();
  back = record(upstream.url);
  rungate = await deploy({ upstreamUrl: back.url, policy: POLICY });
  front = record(rungate.url);
  db = await rungate.database();
  org = (await findOrg(db, 'acme'))!;
});

afterAll(async () => {
  await db?.close();
  await front?.stop();
  await rungate?.stop();
  await back?.stop();
  await upstream?.stop();
}, 20_000);

/** What an attempt of a loop came to: its text or error, its requests, how often its tool ran. */
interface Attempt {
  readonly outcome: string;
  readonly exchanges: readonly Exchange[];
  readonly ran: number;
}

/** An attempt of every loop at the same time, and what the upstream was asked meanwhile. */
interface Round {
  readonly attempts: ReadonlyMap<string, Attempt>;
  readonly sent: readonly Exchange[];
}

const runOf = (story: string, name: string) => `${story}-${name.replaceAll(/\W+/g, '-')}`;

async function attempt(run: string, loop: Loop): Promise<Attempt> {
  const base = `${front.url}/r/${run}`;
  const exchanges = () => front.exchanges.filter(({ path }) => path.startsWith(`/r/${run}/`));
  const before = { requests: exchanges().length, times: ran.get(base) ?? 0 };
  const outcome = await loop({ base, token: rungate.token }).catch(String);
  const times = ran.get(base) ?? 0;
  return { outcome, exchanges: exchanges().slice(before.requests), ran: times - before.times };
}

async function attemptAll(story: string): Promise<Round> {
  const before = back.exchanges.length;
  const attempts = Object.entries(LOOPS).map(
    async ([name, loop]) => [name, await attempt(runOf(story, name), loop)] as const,
  );
  return { attempts: new Map(await Promise.all(attempts)), sent: back.exchanges.slice(before) };
}

/** The gates that wait: one per loop. */
async function waiting(): Promise<GateId[]> {
  const window = { limit: 500, after: undefined, before: undefined, isBackward: false };
  const { items } = await searchGates(org, { isDecidable: true }, Date.now(), window);
  expect(items).toHaveLength(NAMES.length);
  return items.map(({ node }) => node.id);
}

async function decideAll(gates: readonly GateId[], decision: Verdict['decision'] = 'approve') {
  for (const id of gates) await decideGate(org, id, { actor: 'operator', decision }, Date.now());
}

/** Anything of the arguments that the tool was proposed with, in any dialect. */
const ARGUMENTS = /"arguments"|partial_json|"a\\*":\s*2/;
const textOf = ({ bytes }: Exchange) => Buffer.from(bytes).toString('latin1');

/** The event that brings the usage, which Rungate asks for and keeps where the agent did not. */
const USAGE_EVENT = /data: \{[^\n]*"choices":\[\][^\n]*\n\n/;
const isMetered = ({ request }: Exchange) => request.includes('include_usage');

/** What the upstream sent for an agent's request, as the agent has to get it. */
function answerTo(asked: Exchange, sent: readonly Exchange[]): string {
  const keyOf = ({ request }: Exchange) => {
    return JSON.stringify({ ...JSON.parse(request), stream_options: undefined });
  };
  const [answer, ...others] = sent.filter((each) => keyOf(each) === keyOf(asked));
  expect(others).toEqual([]);
  const text = textOf(answer!);
  return isMetered(answer!) && !isMetered(asked) ? text.replace(USAGE_EVENT, '') : text;
}

function expectRefused({ attempts }: Round, name: string, sentence: RegExp) {
  const { outcome, exchanges, ran } = attempts.get(name)!;
  expect(outcome).toMatch(sentence);
  expect(exchanges).toHaveLength(1);
  expect(textOf(exchanges[0]!)).not.toMatch(ARGUMENTS);
  expect(ran).toBe(0);
}

/** The call as the upstream proposed it when the loop met the gate, then the answer to its result. */
function expectDone({ attempts, sent }: Round, met: Round, name: string) {
  const { outcome, exchanges, ran } = attempts.get(name)!;
  expect(outcome).toBe(ANSWER);
  expect(ran).toBe(1);
  expect(exchanges).toHaveLength(2);
  for (const round of [met.sent, sent]) expect(round).toHaveLength(NAMES.length);
  const [released, last] = exchanges as [Exchange, Exchange];
  expect(textOf(released)).toBe(answerTo(released, met.sent));
  expect(textOf(last)).toBe(answerTo(last, sent));
}

/** One step is charged for each call that reached the upstream, and the rest is free. */
async function expectTrail(story: string, name: string, outcomes: readonly string[]) {
  const trail = await readTrail({ ...rungate, url: front.url }, runOf(story, name));
  expect(trail.map(({ outcome }) => outcome)).toEqual([...outcomes]);
  const charged = trail.filter(({ spentNanos }) => spentNanos > 0);
  expect(charged.map(({ outcome }) => outcome)).toEqual(outcomes.filter((each) => each === 'ok'));
}

const HELD = ['ok', 'approval_pending'];
const RELEASED = [...HELD, 'approved', 'released', 'ok'];
const REJECTED = ['rejected', 'approval_rejected', 'approval_rejected'];
const EXPIRED = ['approval_expired', 'approval_expired'];
const PENDING = /has to approve/;

describe('a loop whose call is approved', () => {
  const story = 'approved';
  let met: Round;
  let done: Round;
  beforeAll(async () => {
    met = await attemptAll(story);
    await decideAll(await waiting());
    done = await attemptAll(story);
  });

  test.each(NAMES)('%s: gets the call after that, and nothing of it before', async (name) => {
    expectRefused(met, name, PENDING);
    expectDone(done, met, name);
    await expectTrail(story, name, RELEASED);
  });
});

describe('a loop whose call is rejected', () => {
  const story = 'rejected';
  let refused: readonly Round[];
  beforeAll(async () => {
    await attemptAll(story);
    await decideAll(await waiting(), 'reject');
    refused = [await attemptAll(story), await attemptAll(story)];
  });

  test.each(NAMES)('%s: reads why, as often as it tries', async (name) => {
    for (const round of refused) {
      expectRefused(round, name, /A person has rejected the call/);
      expect(round.sent).toEqual([]);
    }
    await expectTrail(story, name, [...HELD, ...REJECTED]);
  });
});

describe('a loop whose call nobody decides on in time', () => {
  const story = 'expired';
  let expired: Round;
  let again: Round;
  let done: Round;
  beforeAll(async () => {
    await attemptAll(story);
    const first = await waiting();
    for (const table of ['gates', 'parked']) {
      const sql = `update ${table} set expires_at = created_at where expires_at > ?1`;
      await db.write([{ sql, args: [Date.now()] }]);
    }
    expired = await attemptAll(story);
    again = await attemptAll(story);
    const second = await waiting();
    expect(first.filter((id) => second.includes(id))).toEqual([]);
    await decideAll(second);
    done = await attemptAll(story);
  });

  test.each(NAMES)('%s: reads so, and asks anew with its next attempt', async (name) => {
    expectRefused(expired, name, /Nobody approved the call .* in time/);
    expect(expired.sent).toEqual([]);
    expectRefused(again, name, PENDING);
    expectDone(done, again, name);
    await expectTrail(story, name, [...HELD, ...EXPIRED, ...RELEASED]);
  });
});

describe('a loop at a gate of a server that is killed and started again', () => {
  const story = 'killed';
  let met: Round;
  let done: Round;
  beforeAll(async () => {
    met = await attemptAll(story);
    const [first, ...gates] = await waiting();
    const ended = await rungate.servers[0]!.stop('SIGKILL');
    expect(ended.signal).toBe('SIGKILL');
    const approved = await rungate.cli('gates', 'approve', first!, '--org', 'acme');
    expect(approved).toMatchObject({ code: 0 });
    await decideAll(gates.slice(0, NAMES.length / 2));
    const next = await rungate.serve();
    front.target = next.ready.groups!.url!;
    await decideAll(gates.slice(NAMES.length / 2));
    done = await attemptAll(story);
  });

  test.each(NAMES)('%s: gets the call that was approved meanwhile or afterwards', async (name) => {
    expectRefused(met, name, PENDING);
    expectDone(done, met, name);
    await expectTrail(story, name, RELEASED);
  });
});

describe('a loop at a gate of one server that goes on at another', () => {
  const story = 'two-servers';
  let met: Round;
  let done: Round;
  beforeAll(async () => {
    met = await attemptAll(story);
    const other = await rungate.serve('deno');
    front.target = other.ready.groups!.url!;
    for (const id of await waiting()) await approveAt(front.target, id);
    done = await attemptAll(story);
  });

  async function approveAt(url: string, id: GateId): Promise<void> {
    const query = `mutation ($gateId: GateID!) {
      gateApprove(input: { gateId: $gateId }) { gate { status } errors { message } }
    }`;
    const headers = {
      authorization: `Bearer ${rungate.adminToken}`,
      'content-type': 'application/json',
    };
    const body = JSON.stringify({ query, variables: { gateId: id } });
    const response = await fetch(`${url}/graphql`, { method: 'POST', headers, body });
    expect(await response.json()).toEqual({
      data: { gateApprove: { gate: { status: 'APPROVED' }, errors: [] } },
    });
  }

  test.each(NAMES)('%s: gets the call that was approved there', async (name) => {
    expectRefused(met, name, PENDING);
    expectDone(done, met, name);
    await expectTrail(story, name, RELEASED);
  });
});
