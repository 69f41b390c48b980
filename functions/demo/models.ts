/** The list of built-in models, in OpenAI's and in Anthropic's form of `GET /v1/models`. */

import type { Dialect } from '../../schema/errors.ts';
import { CREATED_S, MODELS, requireModel } from './reply.ts';

/** Answers with every model of the built-in upstream. */
export function listModels(dialect: Dialect): Response {
  const data = MODELS.map((id) => describe(id, dialect));
  const page = { has_more: false, first_id: MODELS[0], last_id: MODELS.at(-1) };
  return Response.json(dialect === 'openai' ? { object: 'list', data } : { data, ...page });
}

/**
 * Answers with one model.
 *
 * @throws {Fault} 404 for an unknown one.
 */
export function findModel(id: string, dialect: Dialect): Response {
  requireModel(id);
  return Response.json(describe(id, dialect));
}

function describe(id: string, dialect: Dialect): object {
  return dialect === 'openai'
    ? { id, object: 'model', created: CREATED_S, owned_by: 'demo' }
    : {
        type: 'model',
        id,
        display_name: id,
        created_at: new Date(CREATED_S * 1000).toISOString(),
      };
}
