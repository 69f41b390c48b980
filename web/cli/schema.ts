/** `rungate schema`: the admin API's schema, as it is reviewed and committed. */

import type { Command } from 'commander';
import { printSchema } from 'graphql';
import { schema } from '../../schema/graphql/index.ts';
import { addCommand } from './options.ts';
import { type OutputOptions, printResult } from './output.ts';

/** Adds `schema`. */
export function addSchemaCommand(program: Command): void {
  addCommand(program, 'schema', "print the admin API's GraphQL schema").action(print);
}

function print(options: OutputOptions): void {
  const sdl = printSchema(schema);
  printResult({ schema: sdl }, sdl.split('\n'), options);
}
