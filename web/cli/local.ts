/** The admin API in this process: the operator's own hands on the configured database. */

import { findMember } from '../../db/members.ts';
import type { Org } from '../../db/org.ts';
import { openVault } from '../../db/vault.ts';
import type { Asker, Means } from '../../functions/graphql.ts';
import { signLink } from '../../functions/links.ts';
import { makeLog } from '../../functions/log.ts';
import { Mailer } from '../../functions/mail.ts';
import { normalizeEmail } from '../../schema/email.ts';
import { ADMIN_ACTIONS, type AdminAction, actionsOf } from '../../schema/roles.ts';
import { EXIT_FAILED, Failure } from './failure.ts';
import { OPERATOR, readMasterKeys, type Session, withOrg } from './session.ts';
import type { Transport } from './transport.ts';

/**
 * Opens the API of an org for the operator, who may do everything.
 *
 * @param slug Of the org.
 * @param deputy The address of the member in whose name he acts, within his role.
 * @throws {Failure} when there is no such org or member.
 */
export async function withOperator<T>(
  slug: string,
  deputy: string | undefined,
  work: (transport: Transport) => Promise<T>,
): Promise<T> {
  return await withOrg(slug, async (org, session) => {
    const means = await meansOf(session);
    const asker = await askerFor(org, deputy);
    try {
      return await work(openLocal(means, asker));
    } finally {
      await means.mailer.drain();
    }
  });
}

async function meansOf({ config, db }: Session): Promise<Means> {
  const log = makeLog(config.logLevel);
  const mailer = new Mailer(config, log);
  // It is large, and over HTTP nothing needs it.
  const { Catalogues } = await import('../../functions/catalogues.ts');
  const catalogues = new Catalogues(db, log, config.pricesUrl);
  await catalogues.look(Date.now());
  return {
    catalogues,
    config,
    db,
    log,
    mailer,
    master: await readMasterKeys(config),
    now: Date.now,
  };
}

async function askerFor(org: Org, deputy: string | undefined): Promise<Asker> {
  const none = { tokenId: null, sessionId: null };
  if (deputy === undefined) {
    const viewer = { memberId: null, role: null, actions: new Set(ADMIN_ACTIONS), ...none };
    return { org, actor: OPERATOR, viewer };
  }
  const member = await findMember(org, normalizeEmail(deputy) ?? '');
  if (!member) throw new Failure(EXIT_FAILED, `"${deputy}" is no member of this org.`);
  const { id: memberId, role } = member;
  // That a person gets a token is the operator's to say; what it may do is bounded by the role.
  const actions = new Set<AdminAction>([...actionsOf(role), 'token.create']);
  return { org, actor: OPERATOR, viewer: { memberId, role, actions, ...none } };
}

/** The schema is loaded here alone: over HTTP nothing needs it. */
function openLocal(means: Means, asker: Asker): Transport {
  const { org, viewer } = asker;
  return {
    isRemote: false,
    egressAllow: means.config.egressAllow,
    async send(document, variables) {
      const { runDocument } = await import('../../functions/graphql.ts');
      return await runDocument(means, asker, document, variables);
    },
    async *readTrail(format) {
      const { auditLines } = await import('../../functions/audit.ts');
      for await (const line of auditLines(means, org, format)) yield `${line}\n`;
    },
    async signLink({ id, expiresAt }) {
      const vault = await openVault(org, means.master);
      const gate = { id, expiresAt: Date.parse(expiresAt) };
      const holder = viewer.memberId ?? 'operator';
      return await signLink(means.config, org, vault, gate, holder, Date.now());
    },
  };
}
