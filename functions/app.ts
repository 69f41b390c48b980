/** The application: its routes, and the only place where errors are caught. */

import { Hono } from 'hono';
import { ping } from '../db/system.ts';
import { finishRun, showRun, showSteps } from './api.ts';
import { exportAudit } from './audit.ts';
import { boot } from './boot.ts';
import { demo } from './demo.ts';
import { type Connection, respond, respondJson, secure } from './edge.ts';
import { exportOrg } from './export.ts';
import { decideApproval, showApproval, showGate } from './gates.ts';
import { makeGraphql } from './graphql.ts';
import { acceptOffer, showInvitation } from './invitations.ts';
import { showOpenapi } from './openapi.ts';
import { showPrivacy, showSecurity, showStatus, showStyle, tellContact } from './pages.ts';
import { govern } from './proxy.ts';
import { refuse } from './refuse.ts';
import { tickOnRequest } from './scheduled.ts';
import { showEventsSchema, showPolicySchema } from './schemas.ts';
import type { Services } from './services.ts';
import { beginAtProvider, returnFromProvider, showProvider } from './signin/oidc.ts';
import { requestLink, showLink, showSelf, showSignIn, signOut, useLink } from './signin.ts';
import { askTool, reportTool } from './tools.ts';
import { rotateSecret } from './webhooks.ts';

/** What a runtime's entry knows of the connection, beside the request. */
export type Bindings = { Bindings: Connection };

/** Builds the application; it keeps no state of its own. */
export function makeApp(services: Services) {
  const app = new Hono<Bindings>();
  app.get('/healthz', async () => {
    await ping(services.db);
    return respondJson({ status: 'ok' });
  });
  app.get('/security', () => showSecurity(services));
  app.get('/privacy', () => showPrivacy());
  app.get('/status', (context) => showStatus(services, context));
  app.get('/pages.css', () => showStyle());
  app.get('/.well-known/security.txt', () => tellContact(services));
  app.get('/schemas/policy.json', () => showPolicySchema(services));
  app.get('/schemas/events.json', () => showEventsSchema(services));
  app.get('/openapi.json', () => showOpenapi(services));
  app.get('/v1/runs/:id', ({ req }) => showRun(services, req.raw, req.param('id')));
  app.get('/v1/runs/:id/steps', ({ req }) => showSteps(services, req.raw, req.param('id')));
  app.post('/v1/runs/:id/steps', ({ req }) => reportTool(services, req.raw, req.param('id')));
  app.post('/v1/runs/:id/tools', ({ req }) => askTool(services, req.raw, req.param('id')));
  app.get('/v1/gates/:id', ({ req }) => showGate(services, req.raw, req.param('id')));
  app.get('/approvals/:token', ({ req }) => showApproval(services, req.param('token')));
  app.post('/approvals/:token', ({ req }) => decideApproval(services, req.raw, req.param('token')));
  app.post('/v1/runs/:id/complete', ({ req }) => finishRun(services, req.raw, req.param('id')));
  app.get('/api/export', ({ req }) => exportOrg(services, req.raw));
  app.post('/api/webhooks/:id/rotate-secret', ({ req }) =>
    rotateSecret(services, req.raw, req.param('id')),
  );
  app.get('/api/audit/export', ({ req }) => exportAudit(services, req.raw));
  const graphql = makeGraphql(services);
  app.all('/graphql', ({ req }) => graphql(req.raw));
  servePeople(app, services);
  app.post('/scheduled/tick', ({ req, env }) => tickOnRequest(services, req.raw, env));
  if (services.config.isDemo) app.all('/demo/v1/*', ({ req }) => answerDemo(req.raw));
  app.all('*', ({ req, env }) => govern(services, req.raw, env));
  app.onError((error, { req }) => refuse(services, req.raw, error));
  return secure(services, (request, connection) => app.fetch(request, connection));
}

/** The pages on which people sign in and accept invitations. */
function servePeople(app: Hono<Bindings>, services: Services): void {
  app.get('/sign-in', ({ req }) => showSignIn(services, req.raw));
  app.post('/sign-in', ({ req }) => requestLink(services, req.raw));
  app.get('/sign-in/link/:secret', ({ req }) => showLink(services, req.raw, req.param('secret')));
  app.post('/sign-in/link/:secret', ({ req }) => useLink(services, req.raw, req.param('secret')));
  app.get('/sign-in/me', ({ req }) => showSelf(services, req.raw));
  app.post('/sign-out', ({ req }) => signOut(services, req.raw));
  app.get('/sign-in/oidc', ({ req }) => showProvider(services, req.raw));
  app.get('/sign-in/oidc/callback', ({ req }) => returnFromProvider(services, req.raw));
  app.get('/sign-in/oidc/:slug', ({ req }) =>
    beginAtProvider(services, req.raw, req.param('slug')),
  );
  app.get('/invitations/:secret', ({ req }) =>
    showInvitation(services, req.raw, req.param('secret')),
  );
  app.post('/invitations/:secret', ({ req }) =>
    acceptOffer(services, req.raw, req.param('secret')),
  );
}

/** The built-in upstream answers as a provider does, without the headers of the edge. */
async function answerDemo(request: Request): Promise<Response> {
  const { body, status, headers } = await demo(request);
  return respond(body, status, Object.fromEntries(headers));
}

let running: Promise<ReturnType<typeof makeApp>> | undefined;

/** For hosts that load a module and call its `fetch`: boots from the environment on first use. */
export default {
  async fetch(request: Request, connection: Connection = {}): Promise<Response> {
    running ??= boot().then(makeApp);
    return (await running)(request, connection);
  },
};
