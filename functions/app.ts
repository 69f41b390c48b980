/** The application: its routes, and the only place where errors are caught. */

import { Hono } from 'hono';
import { ping } from '../db/system.ts';
import { finishRun, showRun, showSteps } from './api.ts';
import { boot } from './boot.ts';
import { demo } from './demo.ts';
import { type Connection, respondJson, secure } from './edge.ts';
import { govern } from './proxy.ts';
import { refuse } from './refuse.ts';
import type { Services } from './services.ts';

/** What a runtime's entry knows of the connection, beside the request. */
export type Bindings = { Bindings: Connection };

/** Builds the application; it keeps no state of its own. */
export function makeApp(services: Services) {
  const app = new Hono<Bindings>();
  app.get('/healthz', async () => {
    await ping(services.db);
    return respondJson({ status: 'ok' });
  });
  app.get('/v1/runs/:id', ({ req }) => showRun(services, req.raw, req.param('id')));
  app.get('/v1/runs/:id/steps', ({ req }) => showSteps(services, req.raw, req.param('id')));
  app.post('/v1/runs/:id/complete', ({ req }) => finishRun(services, req.raw, req.param('id')));
  if (services.config.isDemo) app.all('/demo/v1/*', ({ req }) => demo(req.raw));
  app.all('*', ({ req }) => govern(services, req.raw));
  app.onError((error, { req }) => refuse(services, req.raw, error));
  return secure(services, (request, connection) => app.fetch(request, connection));
}

let running: Promise<ReturnType<typeof makeApp>> | undefined;

/** For hosts that load a module and call its `fetch`: boots from the environment on first use. */
export default {
  async fetch(request: Request, connection: Connection = {}): Promise<Response> {
    running ??= boot().then(makeApp);
    return (await running)(request, connection);
  },
};
