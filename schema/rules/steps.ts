/** Steps: what an evaluation may cost, each counted before it is taken. */

/** What an evaluation may still take. */
export interface Budget {
  left: number;
}

/** Each a turn of a node or the reading of one value: about 50 ns. */
export const MAX_STEPS = 1_000_000;
/** How much text is read, copied or compared in one step. */
export const CHARS_PER_STEP = 64;

const EXHAUSTED = new Error('it takes more steps than there are');

let budget: Budget = { left: 0 };

/** Does work whose steps are taken from a budget. It may not wait for anything. */
export function spendFrom<T>(given: Budget, work: () => T): T {
  const outer = budget;
  budget = given;
  try {
    return work();
  } finally {
    budget = outer;
  }
}

/** Counts steps that are about to be taken. @throws where the budget has not so many, ever after. */
export function spend(steps: number): void {
  budget.left -= steps;
  if (budget.left < 0) throw EXHAUSTED;
}
