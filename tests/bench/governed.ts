/** Rungate as it is measured: whole, and cut off after each of its steps. */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createAgent } from '../../db/agents.ts';
import { forOrg } from '../../db/org.ts';
import { createOrg } from '../../db/orgs.ts';
import { addPolicyVersion } from '../../db/policies.ts';
import { setPrice } from '../../db/prices.ts';
import { putProviderKey } from '../../db/provider-keys.ts';
import { makeApp } from '../../functions/app.ts';
import { boot, shutDown } from '../../functions/boot.ts';
import { respond, secure } from '../../functions/edge.ts';
import { authenticate } from '../../functions/proxy/authenticate.ts';
import { type Call, readCall } from '../../functions/proxy/call.ts';
import { decide } from '../../functions/proxy/decide.ts';
import { forward } from '../../functions/proxy/forward.ts';
import { limitRate } from '../../functions/proxy/pace.ts';
import { answerParked, findWaiting } from '../../functions/proxy/park.ts';
import { reserveBudget } from '../../functions/proxy/reserve.ts';
import { checkResults } from '../../functions/proxy/results.ts';
import { resolveRun } from '../../functions/proxy/run.ts';
import { settle } from '../../functions/proxy/settle.ts';
import { settleHold } from '../../functions/proxy/settlement.ts';
import type { Services } from '../../functions/services.ts';
import { nanos } from '../../schema/money.ts';
import type { PolicyDocument } from '../../schema/policy.ts';
import type { Stage, StageOptions } from './stage.ts';

const ACTOR = 'operator';

/** A policy with a rule of each kind, under which every call of the benchmark is admitted. */
const POLICY = {
  models: { allow: ['upstream/*'], deny: ['upstream/secret-*'] },
  budget: { run: '4000000', agentPerDay: '4000000', orgPerMonth: '4000000' },
};

/** The same with a limit of each kind. */
export const LIMITED: PolicyDocument = {
  ...POLICY,
  limits: [
    { per: 'agent', requests: 1_000_000_000, windowS: 60 },
    { per: 'org', tokens: 1_000_000_000_000, windowS: 60 },
    { per: 'policy', concurrent: 1_000_000 },
  ],
  run: { maxSteps: 1_000_000 },
};

/** The same with tools that are allowed, denied and asked about, none of which is ever proposed. */
export const GATED: PolicyDocument = {
  ...LIMITED,
  tools: {
    allow: ['*'],
    deny: ['drop_*'],
    requireApproval: [{ tool: 'issue_refund', when: 'args.amount_usd > 500' }],
  },
};

/** How far a call goes before it is passed on as the bare pass-through does. */
type Cut =
  | 'edge'
  | 'authenticate'
  | 'read'
  | 'run'
  | 'decide'
  | 'gate'
  | 'hold'
  | 'forward'
  | 'settle'
  | 'whole';

/** A stage that runs Rungate's steps up to a cut. */
export function governed(cut: Cut, policy: PolicyDocument = POLICY) {
  return async (options: StageOptions): Promise<Stage> => {
    const folder = await mkdtemp(join(tmpdir(), 'rungate-bench-'));
    const services = await boot({
      RUNGATE_DATABASE_URL: `file:${folder}/rungate.db`,
      RUNGATE_DATABASE_SYNCHRONOUS: options.synchronous,
      RUNGATE_EGRESS_ALLOW: options.upstream.host,
      RUNGATE_LOG: 'error',
    });
    const token = await furnish(services, options.upstream, policy);
    const app =
      cut === 'whole' ? makeApp(services) : secure(services, cutOff(cut, services, options));
    return {
      fetch: (request, connection) => app(request, connection),
      headers: { authorization: `Bearer ${token}` },
      async close() {
        await shutDown(services, 1_000);
        await rm(folder, { recursive: true });
      },
    };
  };
}

async function furnish(
  services: Services,
  upstream: URL,
  document: PolicyDocument,
): Promise<string> {
  const { id } = await createOrg(services.db, services.master, ACTOR, 'Bench', 'bench@example.com');
  const org = forOrg(services.db, id);
  const policy = await addPolicyVersion(org, ACTOR, 'bench', JSON.stringify(document));
  await putProviderKey(org, services.master, ACTOR, {
    name: 'upstream',
    provider: 'openai-compatible',
    baseUrl: `${upstream.origin}/v1`,
    serviceTier: 'default',
    secret: 'upstream-key',
  });
  for (const model of ['demo-small', 'demo-large']) {
    await setPrice(org, ACTOR, `upstream/${model}`, {
      inputNanosPerMillion: nanos(1_000_000_000),
      outputNanosPerMillion: nanos(4_000_000_000),
    });
  }
  return (await createAgent(org, ACTOR, 'bench', policy.id)).token;
}

function cutOff(cut: Cut, services: Services, { upstream }: StageOptions) {
  const pass = (request: Request, body: BodyInit | null) => {
    const { pathname, search } = new URL(request.url);
    const headers = new Headers(request.headers);
    headers.delete('host');
    const url = new URL(pathname + search, upstream);
    return fetch(url, { method: request.method, headers, body, redirect: 'manual' });
  };
  return async (request: Request): Promise<Response> => {
    if (cut === 'edge') return pass(request, request.body);
    const caller = await authenticate(services, request, 'call.create', true);
    if (cut === 'authenticate') return pass(request, request.body);
    const call: Call = await readCall(caller);
    if (cut === 'read') return pass(request, call.bytes);
    const governed = await resolveRun(call);
    if (cut === 'run') return pass(request, call.bytes);
    const permitted = await decide(governed);
    if (cut === 'decide') return pass(request, call.bytes);
    const asked = await findWaiting(permitted);
    if ('parkedId' in asked) return answerParked(asked);
    const checked = await checkResults(asked);
    if (cut === 'gate') return pass(request, call.bytes);
    const held = await reserveBudget(limitRate(checked));
    if (cut === 'hold') {
      const response = await pass(request, held.outgoing);
      await settleHold(held, { outcome: 'ok', isFree: true });
      return response;
    }
    const answer = await forward(held);
    if (cut === 'forward') {
      const bytes = await answer.upstream.bytes(1 << 20);
      answer.flight.unwatch();
      await settleHold(held, { outcome: 'ok', isFree: true });
      return respond(bytes, 200);
    }
    return settle(answer);
  };
}
