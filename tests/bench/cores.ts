/** Which process of the benchmark runs on which cores, where `taskset` exists. */

import { spawnSync } from 'node:child_process';
import { availableParallelism, cpus } from 'node:os';

/** The cores of each role; empty where nothing is pinned. */
export interface Cores {
  readonly upstream: readonly number[];
  readonly server: readonly number[];
  readonly load: readonly number[];
}

/**
 * Shares the cores out: the upstream and the load generator get one each, the measured server the
 * next `serverCores`. With fewer than three cores, or without `taskset`, nothing is pinned.
 */
export function shareCores(allowed: readonly number[], serverCores: number): Cores {
  if (allowed.length < 3) return { upstream: [], server: [], load: [] };
  const [upstream = 0, ...others] = allowed;
  const taken = Math.min(serverCores, others.length - 1);
  return {
    upstream: [upstream],
    server: others.slice(0, taken),
    load: others.slice(taken, taken + 1),
  };
}

/** The cores this process may use, or none when `taskset` can't say. */
export function allowedCores(): number[] {
  const { stdout, status } = spawnSync('taskset', ['-pc', String(process.pid)], {
    encoding: 'utf8',
  });
  return status === 0 ? parseCores(stdout.slice(stdout.lastIndexOf(':') + 1)) : [];
}

/** Reads a list of cores such as `0-2,5`. */
export function parseCores(list: string): number[] {
  return list.split(',').flatMap((part) => {
    const [first = Number.NaN, last = first] = part.trim().split('-').map(Number);
    if (!(last - first < 4_096)) return [];
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}

/** What goes before a command so that it runs on these cores. */
export function pin(cores: readonly number[]): string[] {
  return cores.length === 0 ? [] : ['taskset', '-c', cores.join(',')];
}

/** One line about the machine and the shares. */
export function describeCores({ upstream, server, load }: Cores): string {
  const machine = `${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'})`;
  if (server.length === 0) return `${machine}, nothing pinned`;
  return `${machine}; upstream on ${upstream}, measured server on ${server}, load on ${load}`;
}
