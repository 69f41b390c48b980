/** The admin API as the command line reaches it: over HTTP by token, or in this process. */

import { env } from 'node:process';
import { z } from 'zod';
import { EXIT_FAILED, EXIT_USAGE, Failure } from './failure.ts';
import { withOperator } from './local.ts';
import type { OutputOptions } from './output.ts';
import { openRemote, readRemote } from './remote.ts';
import type { Transport } from './transport.ts';

/** What every command of the admin API understands. */
export interface ApiOptions extends OutputOptions {
  /** The slug of the org; with an admin token, which has an org of its own, only a check. */
  readonly org?: string;
}

/** The admin API of one org; good until the command ends. */
export interface Api extends Omit<Transport, 'send'> {
  /**
   * Runs one GraphQL document.
   *
   * @param isPartial Whether fields within others that the viewer may not read are null.
   * @returns what its fields hold; `T` is what the document selects.
   * @throws {Refused} for an error of a field, or the first of a mutation's.
   * @throws {Failure} when there is no answer.
   */
  run<T>(document: string, variables?: Record<string, unknown>, isPartial?: boolean): Promise<T>;
}

/** Something that the API refuses. */
export class Refused extends Failure {
  /** As `UserError.code`, or the code of a GraphQL error. */
  readonly code: string;

  constructor(code: string, message: string) {
    super(EXIT_FAILED, message);
    this.code = code;
  }
}

/**
 * Opens the way that the environment and the options name: with an admin token in
 * `RUNGATE_TOKEN` the API at `RUNGATE_URL`, else the org of `--org` in the configured database.
 *
 * @param deputy The address of the member in whose name the operator acts.
 * @throws {Failure} when it can't be opened, or the token is of another org.
 */
export async function withApi<T>(
  { org }: ApiOptions,
  work: (api: Api) => Promise<T>,
  deputy?: string,
): Promise<T> {
  const remote = readRemote(env);
  if (remote) {
    if (deputy !== undefined) throw new Failure(EXIT_USAGE, NO_DEPUTY);
    const api = overTransport(openRemote(remote));
    if (org !== undefined) await checkOrg(api, org);
    return await work(api);
  }
  if (org !== undefined) {
    return await withOperator(org, deputy, (transport) => work(overTransport(transport)));
  }
  const message = 'Give --org SLUG, or an admin token (rg_adm_…) in RUNGATE_TOKEN.';
  throw new Failure(EXIT_USAGE, message);
}

const NO_DEPUTY =
  'An admin token acts in the name of its own member: only the operator can name another one.';

async function checkOrg(api: Api, wanted: string): Promise<void> {
  const { org } = await api.run<{ org: { slug: string } }>('query Org { org { slug } }');
  if (org.slug === wanted) return;
  throw new Failure(EXIT_USAGE, `RUNGATE_TOKEN is of the org "${org.slug}", not of "${wanted}".`);
}

function overTransport(transport: Transport): Api {
  return {
    ...transport,
    async run<T>(document: string, variables = {}, isPartial = false): Promise<T> {
      return dataOf(await transport.send(document, variables), isPartial) as T;
    },
  };
}

const ANSWER = z.object({
  data: z.record(z.string(), z.unknown()).nullish(),
  errors: z
    .array(
      z.object({
        message: z.string(),
        path: z.array(z.union([z.string(), z.number()])).optional(),
        extensions: z.object({ code: z.string().optional() }).optional(),
      }),
    )
    .optional(),
});

/** What a mutation's payload may hold beside what it changed. */
const PAYLOAD = z.object({
  errors: z
    .array(z.object({ code: z.string(), field: z.array(z.string()), message: z.string() }))
    .min(1),
});

function dataOf(answer: unknown, isPartial: boolean): object {
  const parsed = ANSWER.safeParse(answer);
  if (!parsed.success) throw new Failure(EXIT_FAILED, 'The answer is not one of Rungate.');
  const { data, errors = [] } = parsed.data;
  const isHidden = ({ path = [], extensions }: (typeof errors)[number]) =>
    isPartial && path.length > 1 && extensions?.code === 'FORBIDDEN';
  const error = errors.find((each) => !isHidden(each));
  if (error) throw new Refused(error.extensions?.code ?? '', error.message);
  for (const value of Object.values(data ?? {})) {
    const [told] = PAYLOAD.safeParse(value).data?.errors ?? [];
    if (told) throw new Refused(told.code, sentenceOf(told));
  }
  return data ?? {};
}

/** `input` is all of it, and some messages begin with their field. */
function sentenceOf({ field, message }: { field: readonly string[]; message: string }): string {
  const [first = 'input'] = field;
  const isTold = first === 'input' || message.startsWith(first);
  return isTold ? message : `${field.join('.')}: ${message}`;
}

/** A page of a list. */
export interface Connection<T> {
  readonly nodes: readonly T[];
  readonly pageInfo: { readonly hasNextPage: boolean; readonly endCursor: string | null };
}

/** The most nodes of one page. */
const PAGE = 100;

/** What a document that {@link readList} runs selects of its connection beside the nodes. */
export const PAGE_INFO = 'pageInfo { hasNextPage endCursor }';

/**
 * Reads a list page after page.
 *
 * @param document Takes `$first` and `$after`.
 * @param find The connection in what the document selects.
 * @param limit The most nodes.
 * @param isPartial As {@link Api.run} has it.
 */
export async function readList<D, T>(
  api: Api,
  document: string,
  find: (data: D) => Connection<T>,
  { variables = {}, limit = Number.POSITIVE_INFINITY, isPartial = false }: ListOptions = {},
): Promise<T[]> {
  const found: T[] = [];
  let after: string | null = null;
  while (found.length < limit) {
    const first = Math.min(PAGE, limit - found.length);
    const page: Connection<T> = find(
      await api.run<D>(document, { ...variables, first, after }, isPartial),
    );
    found.push(...page.nodes);
    after = page.pageInfo.endCursor;
    if (!page.pageInfo.hasNextPage) break;
  }
  return found;
}

/** What else of a list is wanted. */
export interface ListOptions {
  readonly variables?: Record<string, unknown>;
  readonly limit?: number;
  readonly isPartial?: boolean;
}
