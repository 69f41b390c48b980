/** `rungate apply`: makes an org match a file, changing only what differs. */

import { env } from 'node:process';
import { isDeepStrictEqual } from 'node:util';
import type { Command } from 'commander';
import { assignPolicy, createAgent, findAgent } from '../../db/agents.ts';
import { DatabaseError } from '../../db/client.ts';
import type { Org } from '../../db/org.ts';
import { addPolicyVersion, findPolicy } from '../../db/policies.ts';
import { findPrice, type Price, setPrice } from '../../db/prices.ts';
import { findProviderKey, holdsSecret, putProviderKey } from '../../db/provider-keys.ts';
import type { MasterKeys } from '../../db/seal.ts';
import type { PolicyId } from '../../schema/ids.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { invalidManifest, type Manifest, readManifest, type WantedKey } from './manifest.ts';
import { addOrgCommand } from './options.ts';
import { type OutputOptions, printJson } from './output.ts';
import { OPERATOR, readMasterKeys, withOrg } from './session.ts';

interface ApplyOptions extends OutputOptions {
  readonly org: string;
}

/** What was changed; never a secret. */
interface Change {
  readonly kind: 'providerKey' | 'price' | 'policy' | 'agent';
  readonly name: string;
  readonly action: 'created' | 'updated';
  readonly [detail: string]: string | number;
}

/** What is done for one entry of the file. */
interface Done {
  readonly change: Change;
  /** The text of a new agent's token. */
  readonly token?: string;
}

/** A change that is due; nothing happens before it is called. */
type Due = () => Promise<Done>;

/** Adds `apply`. */
export function addApplyCommand(program: Command): void {
  addOrgCommand(program, 'apply', 'make an org match a file, changing only what differs')
    .argument('<file>', 'a JSON file, or - for stdin')
    .action(apply);
}

async function apply(path: string, options: ApplyOptions): Promise<void> {
  const done: Done[] = [];
  try {
    await withOrg(options.org, async (org, { config }) => {
      const manifest = await readManifest(path, { env, allow: config.egressAllow });
      await checkPolicies(path, org, manifest);
      const due = await planChanges(org, await readMasterKeys(config), manifest);
      for (const change of due) done.push(await change());
    });
  } catch (error) {
    // A token is told once: those of agents that were made before the failure must not be lost.
    if (done.length > 0) printDone(done, options);
    throw blame(error);
  }
  printDone(done, options);
}

function printDone(done: readonly Done[], options: ApplyOptions): void {
  const tokens = done.flatMap(({ change, token }) =>
    token === undefined ? [] : [{ agent: change.name, token }],
  );
  printJson({ tokens, changes: done.map(({ change }) => change) }, options);
}

function blame(error: unknown): unknown {
  const isRace = error instanceof DatabaseError && error.conflict;
  if (!isRace) return error;
  return new Failure(EXIT_FAILED, 'The org was changed at the same time: apply the file again.');
}

/** An agent's policy is in the file, or in the org already. */
async function checkPolicies(path: string, org: Org, manifest: Manifest): Promise<void> {
  const known = new Set(manifest.policies.map(({ name }) => name));
  const problems: string[] = [];
  for (const [at, { policy }] of manifest.agents.entries()) {
    if (known.has(policy) || (await findPolicy(org, policy))) continue;
    problems.push(`agents[${at}].policy: neither the file nor the org has a policy "${policy}"`);
  }
  if (problems.length > 0) throw invalidManifest(path, problems);
}

/**
 * Compares everything before anything is changed. Policies come before the agents that need them.
 */
async function planChanges(org: Org, master: MasterKeys, manifest: Manifest): Promise<Due[]> {
  const due: (Due | undefined)[] = [];
  for (const key of manifest.providerKeys) due.push(await planKey(org, master, key));
  for (const price of manifest.prices) due.push(await planPrice(org, price));
  for (const policy of manifest.policies) due.push(await planPolicy(org, policy));
  for (const agent of manifest.agents) due.push(await planAgent(org, agent));
  return due.filter((each) => each !== undefined);
}

async function planKey(org: Org, master: MasterKeys, key: WantedKey): Promise<Due | undefined> {
  const { name, provider, baseUrl, secret } = key;
  const present = await findProviderKey(org, name);
  const isSame =
    present?.provider === provider &&
    present.baseUrl === baseUrl &&
    (await holdsSecret(org, master, present, secret));
  if (isSame) return undefined;
  return async () => {
    await putProviderKey(org, master, OPERATOR, key);
    return { change: { kind: 'providerKey', name, action: actionOn(present), provider, baseUrl } };
  };
}

async function planPrice(org: Org, wanted: Manifest['prices'][number]): Promise<Due | undefined> {
  const { model: name, cacheReadPerMillion: read, cacheWritePerMillion: write } = wanted;
  const price: Price = {
    inputNanosPerMillion: wanted.inputPerMillion,
    outputNanosPerMillion: wanted.outputPerMillion,
    ...(wanted.contextWindow === undefined ? {} : { contextWindow: wanted.contextWindow }),
    ...(read === undefined ? {} : { cacheReadNanosPerMillion: read }),
    ...(write === undefined ? {} : { cacheWriteNanosPerMillion: write }),
  };
  const present = await findPrice(org, name);
  if (isDeepStrictEqual(present, price)) return undefined;
  return async () => {
    await setPrice(org, OPERATOR, name, price);
    return { change: { kind: 'price', name, action: actionOn(present) } };
  };
}

async function planPolicy(
  org: Org,
  { name, document }: Manifest['policies'][number],
): Promise<Due | undefined> {
  const present = await findPolicy(org, name);
  const text = JSON.stringify(document);
  // Parsed, so that neither the order of keys nor spaces make a new version.
  if (present && isDeepStrictEqual(JSON.parse(present.document), JSON.parse(text)))
    return undefined;
  return async () => {
    const { number } = await addPolicyVersion(org, OPERATOR, name, text, present);
    return { change: { kind: 'policy', name, action: actionOn(present), version: number } };
  };
}

async function planAgent(
  org: Org,
  { name, policy }: Manifest['agents'][number],
): Promise<Due | undefined> {
  const present = await findAgent(org, name);
  const known = await findPolicy(org, policy);
  if (present && present.policyId === known?.id) return undefined;
  return async () => {
    const id = known?.id ?? (await policyId(org, policy));
    const change: Change = { kind: 'agent', name, action: actionOn(present), policy };
    if (!present) return { change, token: (await createAgent(org, OPERATOR, name, id)).token };
    await assignPolicy(org, OPERATOR, present.id, id);
    return { change };
  };
}

/** The id of a policy that an earlier change has made. */
async function policyId(org: Org, name: string): Promise<PolicyId> {
  const policy = await findPolicy(org, name);
  if (!policy) throw new Failure(EXIT_FAILED, `The policy "${name}" is gone: apply again.`);
  return policy.id;
}

function actionOn(present: object | undefined): Change['action'] {
  return present ? 'updated' : 'created';
}
