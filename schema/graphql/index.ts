/** The whole schema. */

import './agents.ts';
import './audit.ts';
import './deliveries.ts';
import './events.ts';
import './org.ts';
import './webhooks.ts';
import './invitations.ts';
import './members.ts';
import './sessions.ts';
import './sign-in.ts';
import { builder } from './builder.ts';

/** The schema that is served and printed. */
export const schema = builder.toSchema();
