/** One governed call, top to bottom: read this file first. */

import { Refusal } from '../schema/errors.ts';
import type { Connection } from './edge.ts';
import { authenticate, onFacts } from './proxy/authenticate.ts';
import { type Call, ofRun, readCall } from './proxy/call.ts';
import { decide } from './proxy/decide.ts';
import { forward } from './proxy/forward.ts';
import { limitRate } from './proxy/pace.ts';
import { answerParked, findWaiting } from './proxy/park.ts';
import { reserveBudget } from './proxy/reserve.ts';
import { checkResults } from './proxy/results.ts';
import { resolveRun } from './proxy/run.ts';
import { settle } from './proxy/settle.ts';
import type { Services } from './services.ts';

/**
 * Serves a call of an agent. Each step takes what the step before returned, so that none can be
 * left out or swapped; each throws a {@link Refusal} to stop the call there.
 */
export async function govern(
  services: Services,
  request: Request,
  connection: Connection,
): Promise<Response> {
  const caller = await authenticate(services, request, 'call.create', true); // 401, 403, 429: who is calling
  const call = await readCall(caller); //                                       400, 413: what is asked
  connection.wait?.();
  const served = onFacts(call, renew, async (call) => {
    const governed = await resolveRun(call); //                                 402, 403: the run it belongs to
    const permitted = await decide(governed); //                                400, 403, 404: what the policy says
    const asked = await findWaiting(permitted); //                              the same request, asked about before
    if ('parkedId' in asked) return answerParked(asked); //                     202, 403: until people have decided
    const checked = await checkResults(asked); //                               400, 403: results and approvals of calls it was never given
    const paced = limitRate(checked); //                                        the limits it counts against
    const held = await reserveBudget(paced); //                                 400, 402, 403, 429: money and limits, durably held
    const answer = await forward(held); //                                      402, 403, 429, 502: the upstream, and the next one
    return settle(answer); //                                                   202, 400, 403, 502: the real cost, before the last byte
  });
  return served.catch((error) => Promise.reject(ofRun(error, call.runName)));
}

/** Facts read anew, for a call that is taken up again. */
async function renew(call: Call): Promise<Call> {
  const caller = await authenticate(call.services, call.request, 'call.create');
  return { ...call, ...caller, startedAt: call.startedAt };
}
