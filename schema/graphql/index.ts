/** The whole schema. */

import './agents.ts';
import './agent-tokens.ts';
import './pins.ts';
import './usage.ts';
import './steps.ts';
import './runs.ts';
import './trails.ts';
import './limits.ts';
import './gates.ts';
import './analytics.ts';
import './alerts.ts';
import './retention.ts';
import './leaving.ts';
import './alert-rules.ts';
import './audit.ts';
import './checkpoints.ts';
import './deliveries.ts';
import './events.ts';
import './org.ts';
import './policies.ts';
import './prices.ts';
import './catalogue.ts';
import './provider-keys.ts';
import './simulations.ts';
import './tokens.ts';
import './webhooks.ts';
import './invitations.ts';
import './members.ts';
import './ownership.ts';
import './sessions.ts';
import './sign-in.ts';
import './users.ts';
import { builder } from './builder.ts';

/** The schema that is served and printed. */
export const schema = builder.toSchema();
