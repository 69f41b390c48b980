/** The terms of an agent: the policy that its runs open with, a pin, and what callers may choose. */

import type { PolicyId } from '../ids.ts';
import { builder } from './builder.ts';
import type { Choice, Context } from './context.ts';
import { notFound, UserError } from './errors.ts';
import { POLICY, PolicyType } from './policies.ts';

const READ = { action: 'agent.read', nullable: true } as const;
const MAX_CHOICES = 50;

/** A policy that callers may choose. */
export const ChoiceType = builder.objectRef<Choice>('PolicyChoice');

builder.objectType(ChoiceType, {
  description: 'A policy that callers may choose with x-rungate-policy.',
  fields: (t) => ({
    policy: t.field({
      ...{ type: PolicyType, action: 'policy.read', nullable: true },
      description: 'The policy.',
      resolve: ({ policyId }, _args, { loaders }) => loaders.policies.load(policyId),
    }),
    version: t.exposeInt('number', {
      ...READ,
      description: 'The version that may be chosen; null for the newest, whichever that is.',
    }),
  }),
});

/** How an input names what may be chosen. */
export const ChoiceInput = builder.inputType('PolicyChoiceInput', {
  description: 'A policy that callers may choose.',
  fields: (t) => ({
    policyId: t.field(POLICY),
    version: t.int({
      description: 'One version of it; the newest, whichever that is, unless given.',
    }),
  }),
});

/** A choice as an input has it. */
export interface ChosenInput {
  readonly policyId: PolicyId;
  readonly version?: number | null | undefined;
}

/** The choices that an input names. */
export function toChoices(given: readonly ChosenInput[]): Choice[] {
  return given.map(({ policyId, version }) => ({ policyId, number: version ?? null }));
}

/** What an agent's runs may open with, as the input of a mutation has it. */
export interface Terms {
  readonly policyId: PolicyId;
  readonly pinned: number | null;
  readonly choices: readonly Choice[];
}

/**
 * Checks that what an agent's runs are to open with is the org's and there.
 *
 * @throws {UserError} `NOT_FOUND` for a policy, `INVALID` for a version of it or too many choices.
 */
export async function checkTerms(
  context: Context,
  { policyId, pinned, choices }: Terms,
): Promise<void> {
  if (choices.length > MAX_CHOICES) {
    throw new UserError('INVALID', ['choices'], `At most ${MAX_CHOICES} may be chosen from.`);
  }
  await checkReferences(context, [
    {
      ...{ policyId, number: pinned },
      ...{ policyField: ['policyId'], versionField: ['pinnedVersion'] },
    },
    ...choices.map((choice, at) => ({
      ...choice,
      policyField: ['choices', String(at), 'policyId'],
      versionField: ['choices', String(at), 'version'],
    })),
  ]);
}

/** A reference to a policy, and where in the input it stands. */
interface Reference {
  readonly policyId: PolicyId;
  readonly number: number | null;
  readonly policyField: readonly string[];
  readonly versionField: readonly string[];
}

/**
 * Checks that all policies and versions are the org's and there.
 *
 * @throws {UserError} `NOT_FOUND` for a policy, `INVALID` for a version of it.
 */
export async function checkReferences({ org, store }: Context, references: readonly Reference[]) {
  const ids = [...new Set(references.map(({ policyId }) => policyId))];
  const newest = await store.policies.readNewestVersions(org, ids);
  const numbers = new Map(newest.map(({ policyId, number }) => [policyId, number]));
  for (const { policyId, number, policyField, versionField } of references) {
    const last = numbers.get(policyId);
    if (last === undefined) throw notFound(...policyField);
    if (number === null || (number >= 1 && number <= last)) continue;
    const message = `The policy has no version ${number}; its newest is ${last}.`;
    throw new UserError('INVALID', versionField, message);
  }
}

/**
 * Checks that the viewer may pin, which is an action of its own also where it comes with others.
 *
 * @param field The mutation, as the audit trail has it where it is refused.
 * @param pinned The version to pin to; null where nothing is to be pinned.
 * @throws {UserError} `FORBIDDEN`.
 */
export function checkPin(context: Context, field: string, pinned: number | null): void {
  if (pinned === null || context.viewer.actions.has('policy.pin')) return;
  context.refused.push({ field, action: 'policy.pin' });
  const message = 'This takes the action policy.pin, which the viewer may not do.';
  throw new UserError('FORBIDDEN', ['pinnedVersion'], message);
}
