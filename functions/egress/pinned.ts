/** All other hosts, called over a connection to an address that was checked. */

import type { ClientRequest, IncomingMessage } from 'node:http';
import { request as openRequest } from 'node:https';
import { literalAddress } from '../../schema/address.ts';
import type { PinnedAgent, Valve } from './agent.ts';
import { answer, type Received } from './answer.ts';
import { callerOf, Deadline } from './deadline.ts';
import type { EgressInit, EgressResponse } from './exchange.ts';
import { frameHeaders } from './headers.ts';

/** Sends over a connection of the agent's. */
export function sendPinned(
  url: URL,
  init: EgressInit,
  agent: PinnedAgent,
  maxBytes: number,
): Promise<EgressResponse> {
  const deadline = new Deadline(callerOf(init));
  deadline.expect('timeout_connect', init.timeouts.connectMs);
  return new Promise((resolve, reject) => {
    let isConnected = false;
    const request = openPinned(url, init, agent);
    deadline.onEnd((reason) => request.destroy(reason));
    onceConnected(request, () => {
      isConnected = true;
      deadline.expect('timeout_first_byte', init.timeouts.firstByteMs);
    });
    request.on('error', (error) =>
      reject(deadline.fail(error, isConnected ? 'broken' : 'connect_failed')),
    );
    request.once('response', (message) => {
      try {
        const valve = message.socket && agent.valves.get(message.socket);
        const received = receive(message, init.method, valve);
        resolve(answer(received, deadline, init.timeouts, maxBytes));
      } catch (error) {
        request.destroy();
        reject(deadline.fail(error, 'broken'));
      }
    });
    request.end(init.body);
  });
}

function openPinned(url: URL, init: EgressInit, agent: PinnedAgent): ClientRequest {
  const literal = literalAddress(url);
  const request = openRequest({
    agent,
    host: literal ?? url.hostname,
    servername: literal === undefined ? url.hostname : '',
    port: url.port || 443,
    path: url.pathname + url.search,
    method: init.method,
    setDefaultHeaders: false,
  });
  request.setHeader('host', url.host);
  for (const [name, value] of Object.entries(frameHeaders(init.headers))) {
    request.setHeader(name, value);
  }
  if (init.body !== undefined) request.setHeader('content-length', init.body.byteLength);
  return request;
}

function onceConnected(request: ClientRequest, act: () => void): void {
  request.once('socket', (socket) => {
    if (request.reusedSocket) act();
    else socket.once('secureConnect', act);
  });
}

function receive(message: IncomingMessage, method: string, valve: Valve | undefined): Received {
  const headers = new Headers();
  const { rawHeaders, statusCode: status = 0 } = message;
  for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
    headers.append(rawHeaders[at] ?? '', rawHeaders[at + 1] ?? '');
  }
  const isEmpty = method === 'HEAD' || status === 204 || status === 304;
  if (isEmpty) message.resume();
  return { status, headers, body: isEmpty ? null : message, valve };
}
