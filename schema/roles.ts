/** What tokens and people may do: one table of actions, and which roles hold each. */

/** The roles of people in an org, the mightiest first. */
export const ROLES = ['owner', 'admin', 'member', 'viewer'] as const;

/** What a person is in an org. */
export type Role = (typeof ROLES)[number];

/** An action that people and admin tokens may be allowed. */
export interface Permission {
  readonly roles: readonly Role[];
  /** What it lets one do, in a sentence. */
  readonly about: string;
}

const OWNER: readonly Role[] = ['owner'];
const ADMINS: readonly Role[] = ['owner', 'admin'];
const MEMBERS: readonly Role[] = ['owner', 'admin', 'member'];
const ALL: readonly Role[] = ROLES;

const by = (roles: readonly Role[], about: string): Permission => ({ roles, about });

/** Every action of people and admin tokens; an agent's are {@link AGENT_ACTIONS}. */
export const ACTIONS = {
  'org.read': by(ALL, 'See the org: its name, plan and settings.'),
  'org.update': by(ADMINS, 'Rename the org.'),
  'org.transfer': by(OWNER, 'Offer the ownership to another member, or take the offer back.'),
  'org.delete': by(OWNER, 'Ask for the deletion of the org.'),
  'org.cancel_deletion': by(OWNER, 'Take a request for deletion back.'),
  'org.export': by(OWNER, 'Export everything that the org owns.'),
  'billing.read': by(OWNER, 'See the bills.'),
  'billing.update': by(OWNER, 'Change how the org pays.'),
  'plan.update': by(OWNER, 'Change the plan.'),
  'retention.read': by(ALL, 'See how long records are kept.'),
  'retention.update': by(ADMINS, 'Change how long records are kept.'),
  'sign_in.read': by(ADMINS, 'See how the org signs in through its identity provider.'),
  'sign_in.update': by(OWNER, 'Change how the org signs in through its identity provider.'),
  'member.read': by(ALL, 'See the members and their roles.'),
  'member.update_role': by(ADMINS, 'Change the role of a member, never of an owner or to more.'),
  'member.remove': by(ADMINS, 'Remove a member, never an owner.'),
  'invitation.read': by(ADMINS, 'See the invitations.'),
  'invitation.create': by(ADMINS, 'Invite a person, to a role not above one’s own.'),
  'invitation.resend': by(ADMINS, 'Send an invitation again with a new link.'),
  'invitation.revoke': by(ADMINS, 'Take an invitation back.'),
  'session.read': by(ADMINS, 'See the sessions of all members.'),
  'session.revoke': by(ADMINS, 'End sessions of other members, never of an owner.'),
  'agent.read': by(ALL, 'See the agents.'),
  'agent.create': by(ADMINS, 'Make an agent.'),
  'agent.update': by(ADMINS, 'Rename an agent, or give it another policy.'),
  'agent.suspend': by(ADMINS, 'Refuse all further calls of an agent.'),
  'agent.resume': by(ADMINS, 'Let a suspended agent call again.'),
  'agent.delete': by(ADMINS, 'Delete an agent.'),
  'token.read': by(ADMINS, 'See the tokens: names, last characters, actions and use.'),
  'token.create': by(ADMINS, 'Make a token, with no more actions than one’s own.'),
  'token.update': by(ADMINS, 'Rename a token, or change its actions within one’s own.'),
  'token.rotate': by(ADMINS, 'Replace a token by a new one.'),
  'token.revoke': by(ADMINS, 'End a token.'),
  'policy.read': by(ALL, 'See the policies and their versions.'),
  'policy.create': by(ADMINS, 'Make a policy.'),
  'policy.update': by(ADMINS, 'Publish a version of a policy.'),
  'policy.pin': by(ADMINS, 'Pin an agent to a version of its policy.'),
  'policy.simulate': by(ALL, 'Ask what a policy would have decided.'),
  'policy.delete': by(ADMINS, 'Delete a policy that no agent has.'),
  'provider_key.read': by(ADMINS, 'See the provider keys: names, hosts and last characters.'),
  'provider_key.create': by(ADMINS, 'Add a provider key.'),
  'provider_key.update': by(ADMINS, 'Replace a provider key.'),
  'provider_key.delete': by(ADMINS, 'Delete a provider key.'),
  'price.read': by(ALL, 'See the prices of models.'),
  'price.update': by(ADMINS, 'Set the price of a model.'),
  'price.delete': by(ADMINS, 'Go back to the published price of a model.'),
  'run.read': by(ALL, 'See the runs and their steps.'),
  'run.cancel': by(MEMBERS, 'Cancel a run.'),
  'run.set_ceiling': by(ADMINS, 'Change the ceiling of a run.'),
  'run.body_read': by(MEMBERS, 'Read kept bodies of calls and answers.'),
  'gate.read': by(ALL, 'See the gates and what they hold.'),
  'gate.approve': by(MEMBERS, 'Approve a tool call.'),
  'gate.reject': by(MEMBERS, 'Reject a tool call.'),
  'limit.read': by(ALL, 'See the limits and how much of them is used.'),
  'limit.update': by(ADMINS, 'Change the limits of the org.'),
  'webhook.read': by(ADMINS, 'See the webhooks.'),
  'webhook.create': by(ADMINS, 'Add a webhook.'),
  'webhook.update': by(ADMINS, 'Change a webhook, disable or enable it.'),
  'webhook.delete': by(ADMINS, 'Delete a webhook.'),
  'webhook.rotate_secret': by(ADMINS, 'Replace the secret of a webhook.'),
  'webhook.test': by(ADMINS, 'Send a test event to a webhook.'),
  'webhook.redeliver': by(ADMINS, 'Send a delivery, or a window of events, again.'),
  'delivery.read': by(ADMINS, 'See the deliveries of webhooks.'),
  'event.read': by(ALL, 'See the events.'),
  'alert.read': by(ALL, 'See the alerts.'),
  'alert_rule.read': by(ALL, 'See the rules of alerts.'),
  'alert_rule.create': by(ADMINS, 'Add a rule of alerts.'),
  'alert_rule.update': by(ADMINS, 'Change a rule of alerts.'),
  'alert_rule.delete': by(ADMINS, 'Delete a rule of alerts.'),
  'audit.read': by(ADMINS, 'See the audit trail.'),
  'audit.export': by(ADMINS, 'Export the audit trail.'),
  'audit.verify': by(ADMINS, 'Verify the audit trail and sign checkpoints of it.'),
  'audit.erase': by(OWNER, 'Erase what entries of the audit trail say about a person.'),
  'usage.read': by(ALL, 'See what has been used and spent.'),
  'analytics.read': by(ALL, 'See spend, blocks and latencies over time.'),
  'analytics.export': by(MEMBERS, 'Export analytics.'),
} as const satisfies Readonly<Record<string, Permission>>;

/** What an agent's token can be allowed. */
export const AGENT_ACTIONS = [
  'call.create',
  'run.read',
  'run.complete',
  'tool.ask',
  'step.report',
  'gate.read',
] as const;

export type AgentAction = (typeof AGENT_ACTIONS)[number];
export type AdminAction = keyof typeof ACTIONS;
export type Action = AgentAction | AdminAction;

/** Every action of people and admin tokens, in the order of the table. */
export const ADMIN_ACTIONS = Object.keys(ACTIONS) as readonly AdminAction[];

/** Whether a role holds an action. */
export function mayDo(role: Role, action: AdminAction): boolean {
  return (ACTIONS[action].roles as readonly Role[]).includes(role);
}

/** Every action that a role holds, in the order of the table. */
export function actionsOf(role: Role): readonly AdminAction[] {
  return ADMIN_ACTIONS.filter((action) => mayDo(role, action));
}

/** Whether text from outside names an action of people and admin tokens. */
export function isAdminAction(text: string): text is AdminAction {
  return Object.hasOwn(ACTIONS, text);
}

/** Whether a role stands above another. */
export function outranks(role: Role, other: Role): boolean {
  return ROLES.indexOf(role) < ROLES.indexOf(other);
}
