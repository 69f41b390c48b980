/** One governed call, top to bottom: read this file first. */

import { Refusal } from '../schema/errors.ts';
import type { Connection } from './edge.ts';
import { authenticate, Outdated } from './proxy/authenticate.ts';
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
  const caller = await authenticate(services, request, 'call.create', true); // 401: who is calling
  const call = await readCall(caller); //                                       400, 413: what is asked
  connection.wait?.();
  return onFacts(call, async (call) => {
    const governed = await resolveRun(call); //                                 402, 403: the run it belongs to
    const permitted = await decide(governed); //                                403: what the policy says
    const asked = await findWaiting(permitted); //                              the same request, asked about before
    if ('parkedId' in asked) return answerParked(asked); //                     202, 403: until people have decided
    const checked = await checkResults(asked); //                               400, 403: results and approvals of calls it was never given
    const paced = limitRate(checked); //                                        the limits it counts against
    const held = await reserveBudget(paced); //                                 402, 429: money and limits, durably held
    const answer = await forward(held); //                                      502: the upstream
    return settle(answer); //                                                   the real cost, before the last byte
  });
}

/** How often facts may change under a call that reads them anew before it gives up. */
const READINGS = 3;

/** Takes a call up again, on facts read anew, when those it went by turn out to be outdated. */
async function onFacts(call: Call, serve: (call: Call) => Promise<Response>): Promise<Response> {
  for (let reading = 0; ; reading++) {
    try {
      return await serve(call);
    } catch (error) {
      if (!(error instanceof Outdated)) throw ofRun(error, call.runName);
      if (reading === READINGS)
        throw new Refusal('unavailable', 'Too much changed meanwhile; try again.');
    }
    const caller = await authenticate(call.services, call.request, 'call.create');
    call = { ...call, ...caller, startedAt: call.startedAt };
  }
}
