/** `rungate schema`: the admin API's schema, as it is reviewed and committed. */

import type { Command } from 'commander';
import { addCommand } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';

/** Adds `schema`. */
export function addSchemaCommand(program: Command): void {
  addCommand(program, 'schema', "print the admin API's GraphQL schema").action(print);
}

async function print(options: OutputOptions): Promise<void> {
  // Loaded only here: to build it takes longer than most commands.
  const [{ printSchema }, { schema }] = await Promise.all([
    import('graphql'),
    import('../../schema/graphql/index.ts'),
  ]);
  const sdl = printSchema(schema);
  printResult({ schema: sdl }, sdl.split('\n'), options);
}
