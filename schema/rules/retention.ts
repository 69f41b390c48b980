/** Retention: for how many days records are kept, by the plan and by what the org wants. */

/** The plans of accounts. */
export type PlanName = 'free' | 'pro' | 'growth' | 'enterprise';

/** The most days for which an org can ask. */
export const MAX_RETENTION_DAYS = 3_650;
export const DAY_MS = 86_400_000;

/**
 * For how many days each plan keeps records.
 *
 * @param operatorDays What the operator keeps those of his own plan for; null for as long as they
 *   are wanted.
 */
export function planDays(operatorDays: number | null): Readonly<Record<PlanName, number | null>> {
  return { free: 30, pro: 90, growth: 365, enterprise: operatorDays };
}

/**
 * For how many days an org's records are kept: for what it wants, but never longer than its plan
 * keeps them. Null is for good.
 */
export function keptDays(ofPlan: number | null, wanted: number | null): number | null {
  if (ofPlan === null || wanted === null) return wanted ?? ofPlan;
  return Math.min(ofPlan, wanted);
}

/** Why an org can't have its records kept for so long, or undefined. */
export function judgeDays(days: number, ofPlan: number | null): string | undefined {
  const most = ofPlan ?? MAX_RETENTION_DAYS;
  if (Number.isInteger(days) && days >= 1 && days <= most) return undefined;
  return `Records are kept for 1 to ${most} days on this plan.`;
}
