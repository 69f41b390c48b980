/** `rungate token create`: an admin token in a member's name, as when the first one was lost. */

import { type Command, InvalidArgumentError } from 'commander';
import { findMember } from '../../db/members.ts';
import { createAdminToken } from '../../db/tokens.ts';
import { normalizeEmail } from '../../schema/email.ts';
import { Refusal } from '../../schema/errors.ts';
import { type AdminAction, actionsOf, isAdminAction } from '../../schema/roles.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { addGroup, addOrgCommand, parseLife, parseName } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';
import { OPERATOR, withOrg } from './session.ts';

interface TokenOptions extends OutputOptions {
  readonly org: string;
  readonly member: string;
  readonly name: string;
  readonly actions?: readonly AdminAction[];
  /** Milliseconds. */
  readonly expires?: number;
}

/** Adds `token create`. */
export function addTokenCommands(program: Command): void {
  const token = addGroup(program, 'token', "admin tokens of an org's members");
  addOrgCommand(token, 'create', 'print a new admin token once')
    .requiredOption('--member <email>', 'whose token it is, and whose role bounds it', parseName)
    .option('--name <name>', 'what it is for', parseName, 'cli')
    .option('--actions <actions>', 'what it may do, such as run.read,gate.read', parseActions)
    .option('--expires <time>', 'how long it is good for, such as 30d or 12h', parseLife)
    .action(create);
}

async function create(options: TokenOptions): Promise<void> {
  const { org: slug, member: email, name, expires } = options;
  const made = await withOrg(slug, async (org) => {
    const member = await findMember(org, normalizeEmail(email) ?? '');
    if (!member) throw new Failure(EXIT_FAILED, `"${email}" is no member of ${slug}.`);
    const actions = options.actions ?? actionsOf(member.role);
    const expiresAt = expires === undefined ? null : Date.now() + expires;
    return await told(createAdminToken(org, OPERATOR, member.id, { name, actions, expiresAt }));
  });
  printResult(made, [made.token], options);
}

async function told<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw error instanceof Refusal ? new Failure(EXIT_FAILED, error.message) : error;
  }
}

function parseActions(text: string): AdminAction[] {
  const actions = text.split(',').map((action) => action.trim());
  const unknown = actions.find((action) => !isAdminAction(action));
  if (unknown === undefined) return actions.filter(isAdminAction);
  throw new InvalidArgumentError(`There is no action "${unknown}": see rungate roles.`);
}
