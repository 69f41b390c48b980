/** Whether a policy lets a call through: data in, decision out. */

import type { Policy } from '../policy.ts';
import { findGlob, foldName, matchesGlob } from './glob.ts';

/** What a policy says of a call, and why. */
export type Decision = { readonly effect: 'allow' } | Denial;

/** A call that the policy doesn't let through. */
export interface Denial {
  readonly effect: 'deny';
  /** The rule that decided, as a path in the policy document. */
  readonly rule: string;
  /** The member of the request that was judged. */
  readonly field: string;
  readonly asked: unknown;
  readonly allowed?: unknown;
  /** One sentence a person can act on. */
  readonly reason: string;
}

const ALLOW: Decision = { effect: 'allow' };

/**
 * Decides on a model: a deny list wins; a list of what is allowed denies everything else.
 *
 * @param model The model as `key/model`.
 */
export function decideModel(policy: Policy, model: string): Decision {
  const { allow, deny } = policy.models ?? {};
  // Hosts may take what differs in case, width or spaces for the same model.
  const folded = foldName(model);
  const denied = deny?.find(
    (glob) => matchesGlob(foldName(glob), folded) || matchesGlob(glob, model),
  );
  if (denied !== undefined) {
    return {
      effect: 'deny',
      rule: 'models.deny',
      field: 'model',
      asked: model,
      allowed: allow ?? ['*'],
      reason: `The policy denies the model "${model}" (rule "${denied}").`,
    };
  }
  if (allow && findGlob(allow, model) === undefined) {
    return {
      effect: 'deny',
      rule: 'models.allow',
      field: 'model',
      asked: model,
      allowed: allow,
      reason: `The policy does not allow the model "${model}"; it allows: ${allow.join(', ') || 'none'}.`,
    };
  }
  return ALLOW;
}
