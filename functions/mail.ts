/** Mail: sent over SMTP where the operator has configured it, written to the log in development. */

import { setTimeout as sleep } from 'node:timers/promises';
import type { Transporter } from 'nodemailer';
import { inCidrs, LOOPBACK } from '../schema/address.ts';
import type { Config } from './config.ts';
import type { Log } from './log.ts';

/** A letter of plain text. */
export interface Letter {
  /** One address. */
  readonly to: string;
  readonly subject: string;
  readonly text: string;
}

/** Where letters go: to a mail server, to the log of a development server, or nowhere. */
export type MailRoute = 'smtp' | 'log' | 'none';

/** A letter that could not be sent; the message names no credential. */
export class MailError extends Error {
  override readonly name = 'MailError';
}

const CONNECT_TIMEOUT_MS = 10_000;
const SOCKET_TIMEOUT_MS = 30_000;
const MAX_SUBJECT_CHARS = 200;
/** So that the work for a letter falls after the answer to who asked for it. */
const POST_DELAY_MS = 50;

/** Sends letters, one after the other over a connection each. */
export class Mailer {
  readonly route: MailRoute;
  readonly #log: Log;
  readonly #mail: Config['mail'];
  #transport: Promise<Transporter> | undefined;
  readonly #posted = new Set<Promise<void>>();

  constructor({ mail, isProduction }: Pick<Config, 'mail' | 'isProduction'>, log: Log) {
    this.#log = log;
    this.#mail = mail;
    this.route = mail ? 'smtp' : isProduction ? 'none' : 'log';
  }

  /**
   * Sends a letter.
   *
   * @returns once the mail server has taken it.
   * @throws {MailError} when there is no mail server, or it doesn't take the letter.
   */
  async send({ to, subject, text }: Letter): Promise<void> {
    if (this.route === 'log') {
      this.#log.warn('mail is not configured; this is what would be sent', { to, subject, text });
      return;
    }
    if (!this.#mail) throw new MailError('Mail is not configured.');
    this.#transport ??= openTransport(this.#mail);
    const letter = { to, subject: subject.slice(0, MAX_SUBJECT_CHARS), text };
    try {
      await (await this.#transport).sendMail(letter);
    } catch (cause) {
      throw new MailError('The mail server did not take the letter.', { cause });
    }
  }

  /** Sends a letter a little later, with nobody waiting: how long it takes would tell whose it is. */
  post(letter: Letter): void {
    const sending = sleep(POST_DELAY_MS)
      .then(() => this.send(letter))
      .catch((error: unknown) => this.#log.error('a letter was not sent', { error }))
      .finally(() => this.#posted.delete(sending));
    this.#posted.add(sending);
  }

  /** Waits until everything that was posted is sent or has failed. */
  async drain(): Promise<void> {
    await Promise.all(this.#posted);
  }
}

/**
 * A password goes over TLS only, unless the server is on the same host. The library is loaded with
 * the first letter, since most processes never send one.
 */
async function openTransport({ smtpUrl, from }: NonNullable<Config['mail']>): Promise<Transporter> {
  const { createTransport } = await import('nodemailer');
  const { username, hostname } = new URL(smtpUrl);
  const isNear = hostname === 'localhost' || inCidrs(hostname, LOOPBACK);
  return createTransport(
    {
      url: smtpUrl,
      requireTLS: username !== '' && !isNear,
      connectionTimeout: CONNECT_TIMEOUT_MS,
      greetingTimeout: CONNECT_TIMEOUT_MS,
      socketTimeout: SOCKET_TIMEOUT_MS,
      disableFileAccess: true,
      disableUrlAccess: true,
    },
    { from },
  );
}
