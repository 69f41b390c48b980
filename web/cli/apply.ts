/** `rungate apply`: makes an org match a file, changing only what differs. */

import { env } from 'node:process';
import type { Command } from 'commander';
import { type ApiOptions, Refused, withApi } from './api.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { readManifest } from './manifest.ts';
import { addApiCommand } from './options.ts';
import { printJson } from './output.ts';
import { type Done, planChanges } from './plan.ts';

/** Adds `apply`. */
export function addApplyCommand(program: Command): void {
  addApiCommand(program, 'apply', 'make an org match a file, changing only what differs')
    .argument('<file>', 'a JSON file, or - for stdin')
    .action(apply);
}

async function apply(path: string, options: ApiOptions): Promise<void> {
  const done: Done[] = [];
  try {
    await withApi(options, async (api) => {
      const manifest = await readManifest(path, { env, allow: api.egressAllow });
      for (const change of await planChanges(api, path, manifest)) {
        const made = await change();
        if (made) done.push(made);
      }
    });
  } catch (error) {
    // A token is told once: those of agents that were made before the failure must not be lost.
    if (done.length > 0) printDone(done, options);
    throw blame(error);
  }
  printDone(done, options);
}

function printDone(done: readonly Done[], options: ApiOptions): void {
  const secretsOf = (kind: 'agent' | 'webhook') =>
    done.flatMap(({ change, secret }) =>
      change.kind === kind && secret !== undefined ? [{ name: change.name, secret }] : [],
    );
  const tokens = secretsOf('agent').map(({ name, secret }) => ({ agent: name, token: secret }));
  const webhooks = secretsOf('webhook').map(({ name, secret }) => ({ url: name, secret }));
  const secrets = webhooks.length > 0 ? { webhooks } : {};
  printJson({ tokens, ...secrets, changes: done.map(({ change }) => change) }, options);
}

function blame(error: unknown): unknown {
  const isRace = error instanceof Refused && error.code === 'CONFLICT';
  if (!isRace) return error;
  return new Failure(EXIT_FAILED, 'The org was changed at the same time: apply the file again.');
}
