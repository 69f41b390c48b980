/** The trail of a run as a hash chain: what a step's link is made of, and how an anchor is checked. */

import { z } from 'zod';
import type { Sha256 } from './audit.ts';

/** A step as its row and a line of an export's `steps.jsonl` have it, as far as it is anchored. */
export const TRAIL_STEP = z.object({
  run_id: z.string().max(100),
  id: z.string().max(100),
  agent_id: z.string().max(100),
  kind: z.string().max(100),
  day: z.string().max(100),
  started_at: z.int(),
  settled_at: z.int().nullable(),
  held_nanos: z.int(),
  spent_nanos: z.int(),
  outcome: z.string().nullable(),
  asked: z.string(),
  answered: z.string().nullable(),
});

export type TrailStep = z.infer<typeof TRAIL_STEP>;

/** The action of the audit entries that anchor trails. */
export const ANCHOR = 'run.anchor';

/** The action of the audit entries that tell of anchored trails whose steps retention deletes. */
export const PRUNING = 'run.prune';

/** What an audit entry of {@link PRUNING} says: what was anchored of these runs counts no more. */
export const PRUNED_RUNS = z.object({ after: z.object({ runs: z.array(z.string()) }) });

/** How far a trail had come when it was anchored. */
export interface TrailPoint {
  /** How many steps it had. */
  readonly steps: number;
  /** The hash of the last of them, which stands for all; SHA-256 in lower-case hex. */
  readonly head: string;
}

/** What an audit entry of {@link ANCHOR} says. */
export const ANCHORED_RUNS = z.object({
  after: z.object({
    runs: z.array(z.object({ id: z.string(), steps: z.int().min(0), head: z.string() })),
  }),
});

/** The head of a trail without steps. */
export function trailStart(org: string, run: string, sha256: Sha256): string {
  return sha256(JSON.stringify(['rungate.trail.v1', org, run]));
}

/** The head of a trail after one more step, given the head before it. */
export function trailAfter(head: string, step: TrailStep, sha256: Sha256): string {
  return sha256(
    JSON.stringify([
      'rungate.step.v1',
      head,
      step.id,
      step.agent_id,
      step.kind,
      step.day,
      step.started_at,
      step.settled_at,
      step.held_nanos,
      step.spent_nanos,
      step.outcome,
      step.asked,
      step.answered,
    ]),
  );
}

/**
 * - `unanchored`: nothing says yet what the trail was.
 * - `anchored`: all of it is as it was anchored.
 * - `grown`: what was anchored is as it was; steps were added since.
 * - `broken`: steps were changed, removed or put in between.
 */
export type TrailState = 'unanchored' | 'anchored' | 'grown' | 'broken';

/** What a check of a trail has found. */
export interface TrailReport extends TrailPoint {
  readonly state: TrailState;
  /** One sentence. */
  readonly message: string;
}

/** Checks a trail, step by step in the order of their ids, against what was anchored of it. */
export class TrailCheck {
  readonly #sha256: Sha256;
  readonly #anchors: readonly TrailPoint[];
  #steps = 0;
  #head: string;
  #isBroken = false;

  /** @param anchors Every anchor of the run, in any order. */
  constructor(org: string, run: string, anchors: readonly TrailPoint[], sha256: Sha256) {
    this.#sha256 = sha256;
    this.#anchors = anchors;
    this.#head = trailStart(org, run, sha256);
    this.#compare();
  }

  add(step: TrailStep): void {
    this.#head = trailAfter(this.#head, step, this.#sha256);
    this.#steps++;
    this.#compare();
  }

  #compare(): void {
    const isOther = (anchor: TrailPoint) =>
      anchor.steps === this.#steps && anchor.head !== this.#head;
    if (this.#anchors.some(isOther)) this.#isBroken = true;
  }

  /** What was found, once all steps have been added. */
  report(): TrailReport {
    const anchored = Math.max(-1, ...this.#anchors.map(({ steps }) => steps));
    const missing = anchored - this.#steps;
    const told = (state: TrailState, message: string) => ({
      ...{ state, message, steps: this.#steps, head: this.#head },
    });
    if (missing > 0)
      return told('broken', `${missing} of the ${anchored} anchored steps are missing.`);
    if (this.#isBroken)
      return told('broken', `The ${anchored} anchored steps are not what they were.`);
    if (anchored < 0) return told('unanchored', 'The trail has not been anchored yet.');
    if (missing < 0)
      return told('grown', `${-missing} steps were added after ${anchored} were anchored.`);
    return told('anchored', `All ${anchored} steps are as they were anchored.`);
  }
}
