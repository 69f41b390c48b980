/** The first start: an org to try things with, and what the terminal says of it. */

import { createAgent, findAgent } from '../../db/agents.ts';
import { type Database, DatabaseError } from '../../db/client.ts';
import { forOrg, type Org } from '../../db/org.ts';
import { createOrg, findOrg, isEmpty } from '../../db/orgs.ts';
import { addPolicyVersion } from '../../db/policies.ts';
import { putProviderKey } from '../../db/provider-keys.ts';
import type { MasterKeys } from '../../db/seal.ts';
import type { Services } from '../../functions/services.ts';
import type { PolicyDocument } from '../../schema/policy.ts';
import { OPERATOR } from './session.ts';

/** What a first start makes; the token is told once. */
export interface Demo {
  readonly org: string;
  readonly agent: string;
  readonly token: string;
}

const ORG = 'demo';
const OWNER = 'demo@example.com';
const AGENT = 'demo-agent';
const POLICY_NAME = 'demo';
const RUN = 'first-run';

/** A cent is gone after eight calls of the dearer model, and still lets a tool be declared. */
const POLICY = {
  budget: { run: '0.01', agentPerDay: '1.00' },
} as const satisfies PolicyDocument;

/**
 * Makes the org `demo` with a provider key, a policy and an agent, if the demo is on and there is
 * no org yet. Of several processes that start at once, one does.
 *
 * @returns what was made; `undefined` where nothing was.
 * @throws {DatabaseError | SealError} when it can't be made.
 */
export async function seedDemo({ config, db, master }: Services): Promise<Demo | undefined> {
  if (!config.isDemo || !(await isEmpty(db))) return undefined;
  const org = await claimOrg(db, master);
  if (!org) return undefined;
  await putProviderKey(org, master, OPERATOR, {
    name: 'demo',
    provider: 'demo',
    baseUrl: '',
    serviceTier: 'default',
    secret: '',
  });
  const { id } = await addPolicyVersion(org, OPERATOR, POLICY_NAME, JSON.stringify(POLICY));
  const { token } = await createAgent(org, OPERATOR, AGENT, id);
  return { org: ORG, agent: AGENT, token };
}

/** Under its own slug or not at all: where it is taken, another process has made it meanwhile. */
async function claimOrg(db: Database, master: MasterKeys): Promise<Org | undefined> {
  try {
    const { id } = await createOrg(db, master, OPERATOR, ORG, OWNER, 1);
    return forOrg(db, id);
  } catch (error) {
    if (error instanceof DatabaseError && error.conflict) return undefined;
    throw error;
  }
}

/**
 * What a first start says: the token, and calls that work as they are pasted.
 *
 * @param url Where it listens, without a slash at the end.
 */
export function welcomeLines(url: string, { token }: Demo): string[] {
  return [
    `Rungate serves on ${url}`,
    '',
    `This is the first start: there is now an org "${ORG}" with an agent "${AGENT}", which may`,
    `spend $${POLICY.budget.run} in a run. Its token is shown this once:`,
    '',
    `  ${token}`,
    '',
    'Make a governed call; a built-in model answers, so no account with a provider is needed:',
    '',
    ...callLines(url, token),
    '',
    'See what it cost, and what is on its trail:',
    '',
    `  npx bun run rungate run show ${RUN} --org ${ORG}`,
    `  curl -s ${url}/v1/runs/${RUN} -H 'authorization: Bearer ${token}'`,
    '',
    'Point an SDK here:',
    '',
    `  export OPENAI_BASE_URL=${url}/v1 OPENAI_API_KEY=${token}`,
    `  export ANTHROPIC_BASE_URL=${url} ANTHROPIC_API_KEY=${token}`,
    '',
    ...nextLines(),
  ];
}

function callLines(url: string, token: string): string[] {
  const body = {
    model: 'demo-large',
    messages: [{ role: 'user', content: 'Hello from my first governed run' }],
  };
  return [
    `  curl -s ${url}/v1/chat/completions \\`,
    `    -H 'authorization: Bearer ${token}' \\`,
    `    -H 'content-type: application/json' \\`,
    `    -H 'x-rungate-run-id: ${RUN}' \\`,
    `    -d '${JSON.stringify(body)}'`,
  ];
}

function nextLines(): string[] {
  return [
    'Try next:',
    '  a stream      put "stream": true into the body',
    '  a tool call   take demo-small, declare a tool "weather", ask: call weather {"city":"Oslo"}',
    `  the ceiling   repeat the call: the ninth gets a 402, and the run is stopped; go on with`,
    `                npx bun run rungate run ceiling ${RUN} --set 1.00 --org ${ORG}`,
  ];
}

/**
 * What every later start says, in two lines: where it serves, and what leads to a token.
 *
 * @param url Where it listens, without a slash at the end.
 */
export async function returnLines(url: string, db: Database): Promise<string[]> {
  return [`Rungate serves on ${url}`, await tokenLine(db)];
}

async function tokenLine(db: Database): Promise<string> {
  if (await isEmpty(db)) {
    return 'Make an org: npx bun run rungate init --org NAME --email OWNER';
  }
  const org = await findOrg(db, ORG);
  const isThere = org && (await findAgent(org, AGENT));
  const [agent, slug] = isThere ? [AGENT, ORG] : ['AGENT', 'ORG'];
  return `A new token: npx bun run rungate agent token rotate ${agent} --org ${slug}`;
}
