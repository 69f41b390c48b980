/** Step 4: what the run's policy says of the call, and which upstream it goes to. */

import type { ProviderKey } from '../../db/provider-keys.ts';
import { findForeignId, findResponse, type KeptResponse } from '../../db/responses.ts';
import { readSettings, type Settings } from '../../db/settings.ts';
import type { JsonObject } from '../../schema/json.ts';
import { invalid, isGiven } from '../../schema/rules/bound.ts';
import { findRates, overrideRates, type Rates } from '../../schema/rules/catalogue.ts';
import { type Denial, decideModel } from '../../schema/rules/decide.ts';
import { provider as findProvider, type Provider } from '../providers/compatible.ts';
import type { Endpoint } from '../providers/contract.ts';
import { referredItems } from '../providers/responses.ts';
import { deny, type Governed } from './deny.ts';

/** A call that the policy lets through, and where it goes. */
export interface Permitted extends Governed {
  readonly endpoint: Endpoint;
  readonly settings: Settings;
  readonly key: ProviderKey;
  readonly provider: Provider;
  /** The model as the upstream knows it; `null` for a call that names none. */
  readonly model: string | null;
  /** What the call costs; `null` for a call that costs nothing. */
  readonly rates: Rates | null;
  /** The kept response that the call is about. */
  readonly kept: KeptResponse | undefined;
}

/** The longest name of a model, in characters: it goes on the trail and into the answer. */
const MAX_MODEL_LENGTH = 256;

/** Where a call goes. */
interface Target {
  readonly key: ProviderKey;
  readonly provider: Provider;
  readonly model: string | null;
}

/**
 * Checks route, state and model against the policy and finds the upstream and its price.
 *
 * @throws {Refusal} `route_denied`, `permission_denied`, `unpriced_model`, `not_found`,
 *   `invalid_body`.
 */
export async function decide(call: Governed): Promise<Permitted> {
  const { endpoint } = call;
  if (!endpoint) return denyRoute(call);
  const settings = await readSettings(call.org, call.credential.revision);
  const kept = await findKept(call);
  const target = await findTarget(call, endpoint, settings, kept);
  const rates = endpoint.spends ? await priceOf(call, target, settings) : null;
  return { ...call, endpoint, settings, ...target, rates, kept };
}

function denyRoute(call: Governed): Promise<never> {
  const asked = `${call.request.method} ${call.path.slice(0, 200)}`;
  return deny(
    call,
    'route_denied',
    `Rungate does not forward ${asked}: what it does could not be governed.`,
    { rule: 'routes', field: 'path', asked },
  );
}

/** State that an upstream keeps is open only to the agent that made it. */
async function findKept(call: Governed): Promise<KeptResponse | undefined> {
  const { org, agent, endpoint, body } = call;
  if (endpoint?.path.startsWith('responses/') && call.resourceId !== undefined) {
    const kept = await findResponse(org, agent.id, call.resourceId);
    return kept ?? deny(call, 'not_found', 'This agent has made no response with that id.', {});
  }
  if (isGiven(body?.value.conversation)) return denyConversation(call);
  if (body) await checkReferences(call, body.value);
  const previous = body?.value.previous_response_id;
  if (previous === undefined || previous === null) return undefined;
  if (typeof previous !== 'string') throw invalid('previous_response_id', 'must be a string');
  const kept = await findResponse(org, agent.id, previous);
  return (
    kept ??
    deny(call, 'permission_denied', 'This agent has made no response with that id.', {
      rule: 'responses.owner',
      field: 'previous_response_id',
    })
  );
}

/** An item of another agent's response could hold what this one may not read. */
async function checkReferences(call: Governed, body: JsonObject): Promise<void> {
  if (call.endpoint?.name !== 'responses.create') return;
  const referred = referredItems(body);
  const foreign = referred.length > 0 && (await findForeignId(call.org, call.agent.id, referred));
  if (!foreign) return;
  await deny(call, 'permission_denied', 'This agent has made no response item with that id.', {
    rule: 'responses.owner',
    field: 'input',
    asked: foreign.slice(0, 256),
  });
}

/** Conversations are not forwarded, so that whoever names one did not make it here. */
function denyConversation(call: Governed): Promise<never> {
  const message = 'This agent has made no conversation; send the items or previous_response_id.';
  return deny(call, 'permission_denied', message, {
    rule: 'responses.owner',
    field: 'conversation',
  });
}

async function findTarget(
  call: Governed,
  endpoint: Endpoint,
  settings: Settings,
  kept: KeptResponse | undefined,
): Promise<Target> {
  const asked = call.body?.value.model;
  const candidates = settings.keys.flatMap((key) => candidate(key, endpoint, kept));
  const isNamed = typeof asked === 'string' && asked.length <= MAX_MODEL_LENGTH;
  if (!isNamed && (endpoint.spends || asked !== undefined)) {
    const message = `The body must name its model as a string of at most ${MAX_MODEL_LENGTH} characters.`;
    return deny(call, 'invalid_body', message, { field: 'model' });
  }
  const target =
    typeof asked === 'string' ? choose(candidates, settings, asked, call.startedAt) : candidates[0];
  if (!target) return denyKey(call, endpoint, asked, settings);
  const chosen = { ...target, model: typeof asked === 'string' ? bare(target.key, asked) : null };
  if (chosen.model === null) return chosen;
  const decision = decideModel(call.version.policy, `${chosen.key.name}/${chosen.model}`);
  return decision.effect === 'allow' ? chosen : denyByPolicy(call, decision);
}

type Candidate = Omit<Target, 'model'>;

function candidate(
  key: ProviderKey,
  endpoint: Endpoint,
  kept: KeptResponse | undefined,
): Candidate[] {
  const provider = findProvider(key.provider);
  const isOffered = endpoint.providers?.has(key.provider) ?? true;
  const fits = isOffered && provider?.dialects.includes(endpoint.dialect);
  const isSame = !kept || kept.providerKey === key.name;
  return provider && fits && isSame ? [{ key, provider }] : [];
}

/**
 * `key/model` names its key. A bare model goes to the oldest key that has a price for it, or else
 * to the oldest key: keys are in the order of their age.
 */
function choose(
  candidates: readonly Candidate[],
  settings: Settings,
  asked: string,
  atMillis: number,
): Candidate | undefined {
  const named = candidates.find(({ key }) => asked.startsWith(`${key.name}/`));
  if (named || candidates.length === 1) return named ?? candidates[0];
  const isPriced = ({ key, provider }: Candidate) =>
    ratesOf(settings, provider, key, asked, atMillis) !== undefined;
  return candidates.find(isPriced) ?? candidates[0];
}

function bare(key: ProviderKey, asked: string): string {
  const prefix = `${key.name}/`;
  return asked.startsWith(prefix) ? asked.slice(prefix.length) : asked;
}

function denyKey(
  call: Governed,
  endpoint: Endpoint,
  asked: unknown,
  settings: Settings,
): Promise<never> {
  return deny(
    call,
    'permission_denied',
    `The org has no provider key for ${endpoint.dialect} calls; an admin can add one.`,
    { rule: 'provider_keys', field: 'model', asked, allowed: settings.keys.map((key) => key.name) },
  );
}

function denyByPolicy(call: Governed, denial: Denial): Promise<never> {
  const { rule, field, asked, allowed } = denial;
  return deny(call, 'permission_denied', denial.reason, { rule, field, asked, allowed });
}

/** What a model costs: the org's own price, else the catalogue's; `undefined` when unknown. */
export function ratesOf(
  settings: Settings,
  provider: Provider,
  key: ProviderKey,
  model: string,
  atMillis: number,
): Rates | undefined {
  const own = settings.prices.get(`${key.name}/${model}`);
  const listed = provider.catalogue && findRates(provider.catalogue, model, atMillis);
  if (!own) return listed || undefined;
  const contextWindow = own.contextWindow ?? (listed || undefined)?.contextWindow;
  return overrideRates({ ...own, model, contextWindow });
}

/** What the call costs; a model without a price has the policy's explicit one, or is refused. */
async function priceOf(call: Governed, target: Target, settings: Settings): Promise<Rates> {
  const { key, provider } = target;
  const model = target.model ?? '';
  const rates = ratesOf(settings, provider, key, model, call.startedAt);
  if (rates) return rates;
  const { unpriced } = call.version.policy.budget;
  if (unpriced !== 'deny') {
    const { inputPerMillion, outputPerMillion } = unpriced;
    return overrideRates({
      model,
      inputNanosPerMillion: inputPerMillion,
      outputNanosPerMillion: outputPerMillion,
    });
  }
  const name = `${key.name}/${model}`;
  return deny(
    call,
    'unpriced_model',
    `The model "${name}" has no known price; an admin can set one for it.`,
    { rule: 'budget.unpriced', field: 'model', asked: name },
  );
}
