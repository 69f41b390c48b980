/** The whole schema. */

import './agents.ts';
import './org.ts';
import { builder } from './builder.ts';

/** The schema that is served and printed. */
export const schema = builder.toSchema();
