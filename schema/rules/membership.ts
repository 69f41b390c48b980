/** Who may change whose role, and what one may hand on: never more than one's own. */

import { Refusal } from '../errors.ts';
import { type AdminAction, actionsOf, mayDo, outranks, type Role } from '../roles.ts';

/** Who acts; `undefined` where it is the operator, whom no rule of an org binds. */
export interface Acting {
  readonly memberId?: string;
  readonly role?: Role;
  /** What may be done: the role's actions, or those of the token. */
  readonly actions?: readonly AdminAction[];
  /** When the token that one came with ends, in Unix milliseconds; absent where it doesn't. */
  readonly endsAt?: number;
}

/** A member as the rules see him. */
export interface Standing {
  readonly member: string;
  readonly role: Role;
}

/**
 * Whether a member may be given a role: not by himself upwards, not above the giver's own, not
 * if he stands above the giver, and by a token only with actions that it has itself. Nobody is made
 * an owner but by accepting the ownership, except by the operator. The last owner stays one; the
 * database holds that too.
 *
 * @param owners How many owners the org has.
 * @returns why not, or undefined.
 */
export function judgeRoleChange(
  actor: Acting | undefined,
  target: Standing,
  role: Role,
  owners: number,
): Refusal | undefined {
  if (actor) {
    if (role === 'owner') return byOfferOnly(role);
    const own = actor.role;
    if (!own || outranks(target.role, own)) return above(target.role);
    if (outranks(role, own)) return aboveOwn('role', role, own);
    if (!mayDo(own, 'member.update_role')) return notAllowed('member.update_role');
    const gained = actionsOf(role).filter((action) => !mayDo(target.role, action));
    const beyond = judgeActions(actor, gained);
    if (beyond) return beyond;
  }
  return target.role === 'owner' && role !== 'owner' && owners < 2 ? lastOwner() : undefined;
}

/**
 * Whether a member may be removed. Everybody may leave, but the last owner.
 *
 * @param owners How many owners the org has.
 * @returns why not, or undefined.
 */
export function judgeRemoval(
  actor: Acting | undefined,
  target: Standing,
  owners: number,
): Refusal | undefined {
  const own = actor?.role;
  if (actor && (!own || outranks(target.role, own))) return above(target.role);
  const leaves = actor?.memberId === target.member;
  if (own && !leaves && !mayDo(own, 'member.remove')) return notAllowed('member.remove');
  return target.role === 'owner' && owners < 2 ? lastOwner() : undefined;
}

/**
 * Whether one may invite to a role: not above one's own, by a token only to actions that it has
 * itself, and to ownership nobody may.
 *
 * @returns why not, or undefined.
 */
export function judgeInvitation(actor: Acting | undefined, role: Role): Refusal | undefined {
  return judgeTakingBack(actor, role) ?? judgeActions(actor, actionsOf(role));
}

/** Whether one may take back an invitation to a role: not to one above one's own. @returns why not, or undefined. */
export function judgeTakingBack(actor: Acting | undefined, role: Role): Refusal | undefined {
  if (role === 'owner') return notByMail(role);
  if (!actor) return undefined;
  if (!actor.role || outranks(role, actor.role)) return aboveOwn('role', role, actor.role);
  return mayDo(actor.role, 'invitation.create') ? undefined : notAllowed('invitation.create');
}

/** What a token grants. */
export interface Grant {
  readonly actions: readonly AdminAction[];
  /** When it ends, in Unix milliseconds; null for one that stays. */
  readonly expiresAt: number | null;
}

/**
 * Whether a token of a member may be handed out: his own token, with actions that he has and that
 * who acts came with, and not beyond the end of the token that he came with.
 *
 * @returns why not, or undefined.
 */
export function judgeGrant(
  actor: Acting | undefined,
  { member, role }: Standing,
  { actions, expiresAt }: Grant,
): Refusal | undefined {
  if (actor && actor.memberId !== member) {
    return new Refusal('permission_denied', 'A token is made for oneself only.', {
      rule: 'token.member',
      field: 'member',
    });
  }
  if (actions.length === 0) {
    return new Refusal('invalid_request', 'A token needs an action.', { field: 'actions' });
  }
  return judgeActions(actor, actions) ?? judgeHeld(role, actions) ?? judgeEnd(actor, expiresAt);
}

/** A token made by another would outlive it, and with it whoever it was given to. */
function judgeEnd(actor: Acting | undefined, expiresAt: number | null): Refusal | undefined {
  const endsAt = actor?.endsAt;
  if (endsAt === undefined || (expiresAt !== null && expiresAt <= endsAt)) return undefined;
  return new Refusal('permission_denied', 'A token makes none that ends later than it does.', {
    rule: 'token.expires_at',
    field: 'expiresAt',
    allowed: new Date(endsAt).toISOString(),
  });
}

/**
 * Whether a token may be changed or ended: not that of someone above, and no action may be put
 * into it that who acts doesn't have.
 *
 * @param token `role` is that of the member whose token it is, undefined for an agent's.
 * @returns why not, or undefined.
 */
export function judgeTokenChange(
  actor: Acting | undefined,
  token: { readonly role: Role | undefined },
  actions: readonly AdminAction[],
): Refusal | undefined {
  if (actor && token.role && (!actor.role || outranks(token.role, actor.role))) {
    return above(token.role);
  }
  return judgeActions(actor, actions) ?? (token.role && judgeHeld(token.role, actions));
}

function judgeActions(
  actor: Acting | undefined,
  actions: readonly AdminAction[],
): Refusal | undefined {
  if (!actor) return undefined;
  const own = actor.actions ?? [];
  const beyond = actions.find((action) => !own.includes(action));
  return beyond && aboveOwn('actions', beyond, own);
}

function judgeHeld(role: Role, actions: readonly AdminAction[]): Refusal | undefined {
  const beyond = actions.find((action) => !mayDo(role, action));
  return beyond && aboveOwn('actions', beyond, role);
}

function notAllowed(action: AdminAction): Refusal {
  return new Refusal('permission_denied', `Your role does not permit ${action}.`, {
    rule: 'membership.action',
    asked: action,
  });
}

function above(role: Role): Refusal {
  return new Refusal('permission_denied', `Only an ${role} may do that to an ${role}.`, {
    rule: 'membership.rank',
    asked: role,
  });
}

function aboveOwn(field: string, asked: string, allowed: unknown): Refusal {
  return new Refusal('permission_denied', `Nobody can grant more than he has: ${asked}.`, {
    rule: 'membership.grant',
    field,
    asked,
    allowed,
  });
}

function byOfferOnly(role: Role): Refusal {
  const message = 'Nobody is made an owner: offer him the ownership, which he accepts himself.';
  return new Refusal('permission_denied', message, {
    rule: 'membership.ownership',
    field: 'role',
    asked: role,
  });
}

function notByMail(role: Role): Refusal {
  return new Refusal('permission_denied', 'Only a member can become an owner: invite first.', {
    rule: 'membership.ownership',
    field: 'role',
    asked: role,
  });
}

function lastOwner(): Refusal {
  return new Refusal('invalid_request', 'An org keeps at least one owner: offer it to another.', {
    rule: 'membership.last_owner',
    field: 'role',
  });
}
