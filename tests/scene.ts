/** What is done to an org's rows beside its requests: the functions of db/ that jobs and calls come to. */

import { agentNames, createAgent, updateAgent } from '../db/agents.ts';
import { type DueRule, measuring, noteTold, takeUntold } from '../db/alert-rules.ts';
import { readSpend, type SpendKey } from '../db/analytics.ts';
import { chainHistory, erasePayloads, listAudit } from '../db/audit.ts';
import { pruneAudit, signHead, verifyOrg } from '../db/checkpoints.ts';
import { deleteOrg, deleteRows } from '../db/deletion.ts';
import { claimDeliveries, type Due, finishDelivery, releaseDelivery } from '../db/deliveries.ts';
import { countExport, exportTables, listCaptured } from '../db/export.ts';
import {
  decideGate,
  readAwaited,
  readGate,
  searchGates,
  tellExpiry,
  useGate,
} from '../db/gates.ts';
import { type Reservation, type Reserved, reserve } from '../db/holds.ts';
import { acceptInvitationOf } from '../db/invitations.ts';
import type { Charge } from '../db/limits.ts';
import { acceptOwnership, readOffer } from '../db/members.ts';
import type { Org } from '../db/org.ts';
import { endParked, openParked, type Parked, readParked, release } from '../db/parked.ts';
import { readChoices } from '../db/policies.ts';
import { readProviderKeys, replaceProviderKey } from '../db/provider-keys.ts';
import {
  approvedCalls,
  findReleased,
  findReleasedBefore,
  findUnreleased,
  flagResults,
  readPassage,
  releasedCalls,
  returnApprovals,
  useApprovals,
} from '../db/released.ts';
import { type Report, recordReport } from '../db/reports.ts';
import { findForeignId, findResponse } from '../db/responses.ts';
import { pruneEndedRuns, pruneOpenRuns, pruneRecords } from '../db/retention.ts';
import { blockRun, listRuns, readWindow, reopenRun, searchRuns } from '../db/runs.ts';
import { newMasterKey, openMasterKeys } from '../db/seal.ts';
import { findSession, openSession } from '../db/sessions.ts';
import { leaseRenewal, settle } from '../db/settlements.ts';
import { beginOidc, identify, openOidcSecret, readOidc } from '../db/signin.ts';
import { openSigner, readPublicKeys } from '../db/signing.ts';
import { knownRuns } from '../db/simulations.ts';
import { readSteps, recordRemark } from '../db/steps.ts';
import { rotateOrgKeys } from '../db/system.ts';
import { tenantTables } from '../db/tables.ts';
import { createAdminToken, rotateAgentTokens } from '../db/tokens.ts';
import { renameUser } from '../db/users.ts';
import { openVault } from '../db/vault.ts';
import { updateWebhook } from '../db/webhooks.ts';
import type {
  AgentId,
  GateId,
  ParkedId,
  PolicyId,
  PolicyVersionId,
  RunId,
  StepId,
  TokenId,
  WebhookId,
} from '../schema/ids.ts';
import type { Nanos } from '../schema/money.ts';
import { windowsOf } from '../schema/rules/budget.ts';
import type { Limit } from '../schema/rules/limit.ts';
import { finish } from './measure.ts';
import { as } from './orgs.ts';
import type { World } from './world.ts';

/** Something that is done to the own org, by its name. */
export interface Act {
  readonly name: string;
  /** Whether it goes through the rows of every org. */
  readonly isOfAll?: boolean;
  run(world: World, org: Org): Promise<unknown>;
}

const LATER_MS = 800 * 86_400_000;
const WINDOW = { limit: 20, isBackward: false } as const;

const rowOf = async (org: Org, table: string, condition = 'true') => {
  const sql = `select * from "${table}" where org_id = ?1 and ${condition} limit 1`;
  const row = await org.first(sql);
  if (!row) throw new Error(`the scene has no row in ${table} where ${condition}`);
  return row;
};

const idOf = async <T extends string>(org: Org, table: string, condition?: string): Promise<T> =>
  (await rowOf(org, table, condition)).id as T;

/** One that is approved, or one that still waits. */
const parkedOf = (org: Org, status: 'approved' | 'pending') =>
  idOf<ParkedId>(
    org,
    'parked',
    `id in (select parked_id from gates where org_id = ?1 and status = '${status}')`,
  );

async function placed(org: Org, id: ParkedId): Promise<Pick<Parked, 'id' | 'runId'>> {
  return { id, runId: (await rowOf(org, 'parked', `id = '${id}'`)).run_id as RunId };
}

const onParked: Readonly<Record<string, Act['run']>> = {
  readParked: async (_, org) =>
    readParked(org, await parkedOf(org, 'pending'), await idOf<TokenId>(org, 'tokens'), Date.now()),
  openParked: async ({ ground }, org) =>
    openParked(org, await openVault(org, ground.master), await parkedOf(org, 'pending')),
  release: async (_, org) =>
    release(org, await placed(org, await parkedOf(org, 'approved')), ['call_1'], Date.now()),
  async 'release once more'(_, org) {
    const { id, ended_at: at } = await rowOf(org, 'parked', 'ended_at is not null');
    await release(org, await placed(org, id as ParkedId), ['call_3'], Number(at));
  },
  endParked: async (_, org) =>
    endParked(org, await placed(org, await parkedOf(org, 'pending')), Date.now()),
  async findUnreleased(_, org) {
    const { run_id: run, call_id: call } = await rowOf(org, 'released_calls');
    await findUnreleased(org, run as RunId, [String(call), 'call_none']);
    await findReleased(org, run as RunId, [String(call), 'call_none']);
    const { agent_id: agent } = await rowOf(org, 'runs', `id = '${run}'`);
    await findReleasedBefore(org, agent as AgentId, [String(call), 'call_none']);
  },
  flagResults: async (_, org) =>
    flagResults(
      org,
      await idOf<RunId>(org, 'runs', "status = 'open'"),
      await idOf<TokenId>(org, 'tokens'),
      ['call_new'],
      Date.now(),
    ),
  async releasedCalls(_, org) {
    const [run, token] = [await idOf<RunId>(org, 'runs'), await idOf<TokenId>(org, 'tokens')];
    const call = { callId: 'call_2', tool: 'crm/pay', approvalId: 'call_1' };
    const now = Date.now();
    await org.write(
      ...releasedCalls(org, { runId: run }, ['call_2'], now, [['call_2', 'digest']]),
      approvedCalls(org, run, token, [call], now),
    );
  },
  async useApprovals(_, org) {
    const { run_id: run, call_id: call } = await rowOf(org, 'released_calls', 'used_by is null');
    const step = await idOf<StepId>(org, 'steps');
    await useApprovals(org, run as RunId, step, [String(call)]);
    await org.write(returnApprovals(org, run as RunId, step));
  },
};

const onGates: Readonly<Record<string, Act['run']>> = {
  searchGates: (_, org) => searchGates(org, { isDecidable: true }, Date.now(), WINDOW),
  async readAwaited(_, org) {
    const { id, token_id: token } = await rowOf(org, 'gates', "status = 'pending'");
    await readAwaited(org, id as GateId, token as TokenId, Date.now());
  },
  async tellExpiry(_, org) {
    const gate = await readGate(org, await idOf<GateId>(org, 'gates', "status = 'pending'"));
    await tellExpiry(org, gate!, Date.now() + LATER_MS);
  },
  useGate: async (_, org) =>
    useGate(
      org,
      (await readGate(
        org,
        await idOf<GateId>(org, 'gates', "status = 'approved' and parked_id is null"),
      ))!,
      Date.now(),
    ),
  async 'decideGate of siblings'(_, org) {
    const reject = { actor: 'operator', decision: 'reject', reason: 'no' } as const;
    const { id } = await rowOf(org, 'gates', "status = 'pending' and parked_id is not null");
    await decideGate(org, id as GateId, reject, Date.now());
  },
};

const onRuns: Readonly<Record<string, Act['run']>> = {
  listRuns: async (_, org) =>
    listRuns(
      org,
      { policyId: await idOf<PolicyId>(org, 'policies', "name like '%-policy'") },
      { by: 'opened_at', isDescending: true },
      WINDOW,
    ),
  searchRuns: async ({ own }, org) => [
    await searchRuns(org, own.name),
    await searchRuns(org, await idOf<RunId>(org, 'runs')),
  ],
  readWindow: async (_, org) =>
    readWindow(org, await idOf<AgentId>(org, 'agents', 'window_run_id is not null')),
  async blockRun(_, org) {
    const run = await idOf<RunId>(org, 'runs', "status = 'open'");
    const now = Date.now();
    await blockRun(org, run, 'limits', now, now, { whileHeld: true });
    await reopenRun(org, run, now + 1);
  },
  knownRuns: async (_, org) => knownRuns(org, [await idOf<RunId>(org, 'runs')]),
  async readSteps(_, org) {
    const { run_id: run, id } = await rowOf(org, 'steps');
    await readSteps(org, [`${run as RunId}/${id as StepId}`]);
  },
  async recordRemark(_, org) {
    const call = await callOn(org);
    const { runId, windows, now, asked } = call;
    const limit = { rule: 'run', subject: `${runId}/digest`, per: 'run', most: 1_000 } as const;
    const charges: Charge[] = [
      { limit: { ...limit, kind: 'same_request', windowMs: 60_000 }, amount: 1 },
      { limit: { ...limit, kind: 'steps', windowMs: 0 }, amount: 1 },
    ];
    const place = { runId, windows, now, asked, answered: {}, charges };
    await recordRemark(org, { ...place, kind: 'note', outcome: 'made', isCounted: true });
  },
  async recordReport(_, org) {
    const now = Date.now();
    const { run_id: run, key } = await rowOf(org, 'reports');
    const report: Report = {
      ...{ runId: run as RunId, key: String(key), windows: windowsOf(now), now },
      ...{ tokenId: await idOf<TokenId>(org, 'tokens'), outcome: 'ok', startedAt: now },
      ...{ latencyMs: 1, spentNanos: 1 as Nanos, detail: {} },
    };
    await recordReport(org, report);
    await recordReport(org, { ...report, key: null, mark: { tool: 'refund' } });
    await readPassage(org, run as RunId, 'refund', 'call_1');
  },
  async reserve(_, org) {
    const call = await callOn(org);
    await settleAll(org, call, [await reserve(org, call)]);
  },
  async reserveTogether(_, org) {
    const call = await callOn(org);
    const reserved = await Promise.all([reserve(org, call), reserve(org, call)]);
    await settleAll(org, call, reserved);
  },
  async reserveLimited(_, org) {
    const call = await callOn(org);
    const take = () => reserve(org, call, chargesOn(org, call));
    const first = await take();
    await settleAll(org, call, [first, ...(await Promise.all([take(), take()]))]);
  },
  async leaseRenewal(_, org) {
    const { run_id: run, id } = await rowOf(org, 'steps', 'settled_at is null');
    await org.write(leaseRenewal(org, run as RunId, id as StepId, Date.now() + LATER_MS));
  },
  async findResponse(_, org) {
    const { agent_id: agent, response_id: id } = await rowOf(org, 'responses');
    await findResponse(org, agent as AgentId, String(id));
    await findForeignId(org, agent as AgentId, [String(id)]);
  },
};

/** A call that holds money in every scope. */
async function callOn(org: Org): Promise<Reservation> {
  const now = Date.now();
  const run = await rowOf(org, 'runs', "status = 'open' and held_nanos > 0");
  const token = await rowOf(org, 'tokens', `agent_id = '${run.agent_id}'`);
  const { revision } = (await org.first(
    'select revision from orgs where id = ?1 and ?1 in (select org_id from runs where org_id = ?1)',
  ))!;
  const [tokenId, runId] = [token.id as TokenId, run.id as RunId];
  const most = 1_000_000_000_000 as Nanos;
  return {
    ...{ runId, agentId: run.agent_id as AgentId, windows: windowsOf(now), now },
    ...{ kind: 'model_call', heldNanos: 1 as Nanos },
    ...{ leaseExpiresAt: now + 60_000, asked: { endpoint: 'made', tokenId } },
    ceilings: { agentPerDay: most, agentPerMonth: most, orgPerMonth: most },
    standing: { tokenId, revision: Number(revision), windowSince: null, unparkedSince: null },
  };
}

/** Limits of every kind that counts rows of an org. */
function chargesOn(org: Org, { agentId, runId }: Reservation): Charge[] {
  const common = { rule: 'limits[0]', most: 1_000, windowMs: 0 };
  const [ofOrg, ofAgent] = [
    { ...common, per: 'org', subject: org.id },
    { ...common, per: 'agent', subject: agentId },
  ] as const;
  const limits: Limit[] = [
    { ...ofOrg, kind: 'requests', windowMs: 60_000 },
    { ...ofAgent, kind: 'tokens', windowMs: 60_000 },
    { ...ofOrg, kind: 'concurrent' },
    { ...ofAgent, kind: 'concurrent' },
    { ...common, kind: 'steps', per: 'run', subject: runId },
  ];
  return limits.map((limit) => ({ limit, amount: 1 }));
}

/** Settles at once what was reserved, and a call that was under way before. */
async function settleAll(org: Org, call: Reservation, reserved: readonly Reserved[]) {
  const { runId, agentId, heldNanos, now, windows } = call;
  const earlier = await rowOf(org, 'steps', `settled_at is null and run_id = '${runId}'`);
  const policyVersionId = await idOf<PolicyVersionId>(org, 'policy_versions');
  const all = [{ stepId: earlier.id as StepId, tokens: undefined }, ...reserved];
  const ended = all.map(({ stepId, tokens }) => {
    if (!stepId) throw new Error('nothing was reserved');
    const hold = { runId, stepId, agentId, policyVersionId, day: windows.day, heldNanos, tokens };
    const end = { now, spentNanos: 1 as Nanos, outcome: 'ok', answered: { latencyMs: 1 } };
    return settle(org, { ...hold, providerKey: 'made', model: 'made' }, end);
  });
  await Promise.all(ended);
}

const onTime: Readonly<Record<string, Act['run']>> = {
  async pruneEndedRuns(_, org) {
    while ((await pruneEndedRuns(org, Date.now() + LATER_MS, 1_000)) > 0);
  },
  pruneOpenRuns: (_, org) => pruneOpenRuns(org, Date.now() + LATER_MS, 1_000),
  pruneRecords: (_, org) => pruneRecords(org, Date.now() + LATER_MS, 1_000),
  async pruneAudit({ ground }, org) {
    const now = Date.now();
    await pruneAudit(org, await openSigner(ground.db, ground.master), now + LATER_MS, now, 5);
  },
  signHead: async ({ ground }, org) =>
    signHead(org, await openSigner(ground.db, ground.master), Date.now()),
  verifyOrg: async ({ ground }, org) =>
    verifyOrg(org, await readPublicKeys(ground.db, ground.master)),
  async deleteRows({ ground }, org) {
    for (const table of await tenantTables(ground.db)) await deleteRows(org, table, 1_000);
  },
  deleteOrg: async ({ ground }, org) =>
    deleteOrg(ground.db, org, await tenantTables(ground.db), Date.now()),
  async measuring(_, org) {
    const run = await rowOf(org, 'runs', "status = 'open'");
    const counts = { stepCount: Number(run.step_count), openedAt: Number(run.opened_at) };
    const open = [{ id: String(run.id), ...counts }];
    for (const metric of ['spend', 'error_rate', 'blocked_runs', 'pending_gates'] as const) {
      const due = { org, rule: { metric, windowS: 3_600 } } as DueRule;
      await finish(measuring(due, Date.now(), open));
    }
  },
};

const onReports: Readonly<Record<string, Act['run']>> = {
  async readSpend(_, org) {
    const days = { first: '2000-01-01', last: '2999-12-31' };
    const keys: readonly SpendKey[] = ['day', 'agent', 'model', 'policy'];
    for (const by of keys) await readSpend(org, by, days);
  },
  erasePayloads: (_, org) => erasePayloads(org, 'operator', [1, 2, 3]),
  listAudit: (_, org) => listAudit(org, { limit: 1_000 }),
  async countExport({ ground }, org) {
    for (const table of await exportTables(ground.db)) await countExport(org, table);
  },
  listCaptured: (_, org) => listCaptured(org, undefined, 100),
};

const onPeople: Readonly<Record<string, Act['run']>> = {
  async findSession({ ground, own }, org) {
    const session = await openSession(org, own.owner.id, { method: 'link' }, Date.now());
    await findSession(ground.db, session!.secret, Date.now() + 3_600_000);
  },
  renameUser: ({ own }, org) => renameUser(org, as(own.owner), 'Somebody'),
  openOidcSecret: async ({ ground }, org) =>
    openOidcSecret(org, ground.master, (await readOidc(org))!),
  beginOidc: (_, org) =>
    beginOidc(org, { state: 's', nonce: 'n', verifier: 'v' }, Date.now() + LATER_MS),
  identify: ({ own }, org) =>
    identify(org, `https://${own.name}.example`, own.name, own.owner.email, Date.now()),
  async acceptOwnership({ own }, org) {
    const now = Date.now();
    const { to } = (await readOffer(org, now))!;
    const heir = Object.values(own.members).find(({ id }) => id === to)!;
    await acceptOwnership(org, as(heir), to, own.slug, now);
  },
  acceptInvitationOf: ({ ground, own }, org) =>
    acceptInvitationOf(ground.db, org, `${own.name}@invited.example`, Date.now()),
  rotateAgentTokens: async (_, org) =>
    rotateAgentTokens(org, 'operator', await idOf<AgentId>(org, 'agents'), 60_000),
  createAdminToken: ({ own }, org) =>
    createAdminToken(org, as(own.owner), own.owner.id, {
      ...{ name: 'made', actions: ['agent.read'], expiresAt: null },
    }),
};

const onSettings: Readonly<Record<string, Act['run']>> = {
  async replaceProviderKey({ ground }, org) {
    const [present] = await readProviderKeys(org);
    const key = { ...present!, provider: 'demo', secret: 'another secret' };
    await replaceProviderKey(org, ground.master, 'operator', present!, key);
  },
  agentNames: (_, org) => agentNames(org),
  readChoices: async (_, org) =>
    readChoices(org, (await rowOf(org, 'agent_policies')).agent_id as AgentId),
  async createAgent({ own }, org) {
    const policy = await idOf<PolicyId>(org, 'policies', "name like '%-policy'");
    const other = await idOf<PolicyId>(org, 'policies', "name like '%-spare'");
    const choices = [{ policyId: other, number: 1 }];
    await createAgent(org, 'operator', `${own.name}-made`, policy, { pinned: null, choices });
    const agent = await idOf<AgentId>(org, 'agents', "name like '%-agent'");
    const change = { name: `${own.name}-agent`, policyId: policy, pinned: null, choices };
    await updateAgent(org, 'operator', agent, change);
  },
  updateWebhook: async (_, org) =>
    updateWebhook(org, 'operator', await idOf<WebhookId>(org, 'webhooks'), { status: 'disabled' }),
};

const ATTEMPT = {
  ...{ startedAt: 1_700_000_000_000, durationMs: 1, outcome: 'http_410', requestHeaders: {} },
  ...{ responseStatus: 410, responseHeaders: null, responseBody: null },
};

/** What is due to an org's endpoints, long after. */
async function dueOf({ ground }: World, org: Org): Promise<Due> {
  const now = Date.now() + LATER_MS;
  const claim = { by: 'scene', now, leaseMs: 60_000, limit: 100 };
  const due = (await claimDeliveries(ground.db, claim)).find(({ orgId }) => orgId === org.id);
  if (!due) throw new Error('the scene has nothing to deliver');
  return due;
}

/** What goes through the rows of all orgs, and comes to those of each. */
const onAll: Readonly<Record<string, Act['run']>> = {
  releaseDelivery: async (world, org) =>
    releaseDelivery(world.ground.db, await dueOf(world, org), Date.now()),
  finishDelivery: async (world, org) =>
    finishDelivery(world.ground.db, await dueOf(world, org), ATTEMPT, {
      ...{ status: 'dead', gone: true },
    }),
  chainHistory: ({ ground }) => chainHistory(ground.db),
  async rotateOrgKeys({ ground }) {
    const master = openMasterKeys(`${newMasterKey('later')},${ground.masterText}`);
    await rotateOrgKeys(ground.db, master, () => {});
  },
  async takeUntold({ ground }) {
    const now = Date.now() + LATER_MS;
    for (const untold of await takeUntold(ground.db, now, 100)) await noteTold(untold, now);
  },
};

const actsOf = (table: Readonly<Record<string, Act['run']>>, isOfAll = false): Act[] =>
  Object.entries(table).map(([name, run]) => ({ name, run, isOfAll }));

/** Everything that is done once; the database is put back after each. */
export const ACTS: readonly Act[] = [
  ...[onParked, onGates, onRuns, onTime, onReports, onPeople, onSettings].flatMap((table) =>
    actsOf(table),
  ),
  ...actsOf(onAll, true),
];
