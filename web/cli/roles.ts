/** `rungate roles`: the table of what each role may do. */

import type { Command } from 'commander';
import { ACTIONS, ADMIN_ACTIONS, mayDo, ROLES } from '../../schema/roles.ts';
import { addCommand } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';
import { alignTable } from './table.ts';

/** Adds `roles`. */
export function addRolesCommand(program: Command): void {
  addCommand(program, 'roles', 'print what each role may do').action(printRoles);
}

function printRoles(options: OutputOptions): void {
  const actions = ADMIN_ACTIONS.map((action) => {
    const { roles, about } = ACTIONS[action];
    return { action, roles, about };
  });
  const columns = ['action', ...ROLES, 'what it is'].map((heading) => ({
    heading,
    align: 'left' as const,
  }));
  const rows = actions.map(({ action, about }) => [
    action,
    ...ROLES.map((role) => (mayDo(role, action) ? 'yes' : '-')),
    about,
  ]);
  printResult({ roles: ROLES, actions }, alignTable(columns, rows), options);
}
