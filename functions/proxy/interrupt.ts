/** Ending a stream that has begun: the reason as an event that the caller's client throws. */

import { errorBody, Refusal } from '../../schema/errors.ts';
import { stopSentence } from '../../schema/rules/limit.ts';
import type { Endpoint } from '../providers/contract.ts';
import type { AbortReason } from './flight.ts';

/**
 * A refusal as an event of a stream: `data` alone in the dialect of chat completions, `event:
 * error` in those of responses and messages. The official clients throw it like a refused call.
 */
export function errorEvent(
  refusal: Refusal,
  { name, dialect }: Pick<Endpoint, 'name' | 'dialect'>,
  requestId: string,
): Uint8Array<ArrayBuffer> {
  const body = errorBody(refusal, dialect, requestId);
  if (dialect === 'anthropic') return formatEvent(body, 'error');
  return name.startsWith('responses.')
    ? formatEvent(responsesError(body), 'error')
    : formatEvent(body);
}

/** Clients read the error's members, or the error itself; a number in the sequence is expected. */
function responsesError(body: object): object {
  const { error } = body as { error: { code: string; message: string; param: string | null } };
  const { code, message, param } = error;
  return { type: 'error', sequence_number: 0, code, message, param, error };
}

function formatEvent(data: object, event?: string): Uint8Array<ArrayBuffer> {
  const name = event === undefined ? '' : `event: ${event}\n`;
  return new TextEncoder().encode(`${name}data: ${JSON.stringify(data)}\n\n`);
}

/**
 * What a caller is told whose call was ended for a reason of governance.
 *
 * @returns undefined for all other ends, which have to look like what they are: broken.
 */
export function interruption(reason: AbortReason | undefined, run: string): Refusal | undefined {
  switch (reason) {
    case 'run_cancelled':
      return new Refusal('run_closed', `The run "${run}" was cancelled; use a new run id.`, {
        ...{ rule: 'run.status', asked: run, allowed: 'open', runId: run },
      });
    case 'run_overdue':
      return new Refusal('run_closed', stopSentence(run, 'run.max_duration')!, {
        ...{ rule: 'run.maxDurationS', asked: run, runId: run },
      });
    case 'agent_suspended':
      return new Refusal('agent_suspended', 'The agent has been suspended by an admin.', {
        ...{ rule: 'agent.suspended', runId: run },
      });
    case 'token_revoked':
      return new Refusal('invalid_token', 'The Rungate token was revoked.', { runId: run });
    default:
      return undefined;
  }
}
