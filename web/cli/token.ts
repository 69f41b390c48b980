/** `rungate token create`: an admin token in a member's name, as when the first one was lost. */

import { type Command, InvalidArgumentError } from 'commander';
import { type AdminAction, isAdminAction, mayDo, type Role } from '../../schema/roles.ts';
import { type Api, type ApiOptions, withApi } from './api.ts';
import { EXIT_USAGE, Failure } from './failure.ts';
import { addApiCommand, addGroup, parseLife, parseName } from './options.ts';
import { printResult } from './output.ts';

interface TokenOptions extends ApiOptions {
  readonly member?: string;
  readonly name: string;
  readonly actions?: readonly AdminAction[];
  /** Milliseconds. */
  readonly expires?: number;
}

/** Adds `token create`. */
export function addTokenCommands(program: Command): void {
  const token = addGroup(program, 'token', "admin tokens of an org's members");
  addApiCommand(token, 'create', 'print a new admin token once')
    .option(
      '--member <email>',
      'whose token it is, and whose role bounds it; needed unless RUNGATE_TOKEN has his own',
      parseName,
    )
    .option('--name <name>', 'what it is for', parseName, 'cli')
    .option('--actions <actions>', 'what it may do, such as run.read,gate.read', parseActions)
    .option('--expires <time>', 'how long it is good for, such as 30d or 12h', parseLife)
    .action(create);
}

interface Me {
  readonly me: { readonly role: Role; readonly actions: readonly AdminAction[] };
}

/** All that the token's member may do, with an admin token as far as that goes. */
async function readActions(api: Api): Promise<readonly AdminAction[]> {
  const { me } = await api.run<Me>('query Me { me { role actions } }');
  return me.actions.filter((action) => mayDo(me.role, action));
}

const CREATE = `mutation Create($input: TokenCreateInput!) {
  tokenCreate(input: $input) { token { id } secret errors { code field message } }
}`;

interface Created {
  readonly tokenCreate: { readonly token: { readonly id: string }; readonly secret: string };
}

async function create(options: TokenOptions): Promise<void> {
  const { name, expires, member } = options;
  const expiresAt = expires === undefined ? null : new Date(Date.now() + expires).toISOString();
  const work = async (api: Api) => {
    if (!api.isRemote && member === undefined) {
      throw new Failure(EXIT_USAGE, 'Say with --member whose token it is.');
    }
    const actions = options.actions ?? (await readActions(api));
    return await api.run<Created>(CREATE, { input: { name, actions, expiresAt } });
  };
  const { token, secret } = (await withApi(options, work, member)).tokenCreate;
  printResult({ id: token.id, token: secret }, [secret], options);
}

function parseActions(text: string): AdminAction[] {
  const actions = text.split(',').map((action) => action.trim());
  const unknown = actions.find((action) => !isAdminAction(action));
  if (unknown === undefined) return actions.filter(isAdminAction);
  throw new InvalidArgumentError(`There is no action "${unknown}": see npx bun run rungate roles.`);
}
