/** Signed checkpoints of audit chains: Ed25519 (RFC 8037) in compact JWS, checked without us. */

import {
  CompactSign,
  type CryptoKey,
  calculateJwkThumbprint,
  compactVerify,
  exportJWK,
  generateKeyPair,
  importJWK,
  type JWK,
} from 'jose';
import { z } from 'zod';
import { type Checkpoint, PLATFORM_CHAIN } from '../schema/audit.ts';
import type { Database, Row } from './client.ts';
import { type MasterKeys, makeOrgKey, open, rewrapOrgKey, type SealContext, seal } from './seal.ts';

const ALGORITHM = 'EdDSA';
const TYPE = 'rungate-audit-checkpoint';
const MAX_JWS_CHARS = 4_096;

/** A public key as a JSON Web Key; `kid` is its thumbprint (RFC 7638). */
export const PUBLIC_KEY = z.object({
  kty: z.literal('OKP'),
  crv: z.literal('Ed25519'),
  x: z.string().length(43),
  kid: z.string().min(1).max(100),
});

export type PublicKey = z.output<typeof PUBLIC_KEY>;

const CHECKPOINT = z.object({
  org: z.string().min(1).max(100),
  seq: z.int().positive(),
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  at: z.int().nonnegative(),
  purpose: z.enum(['head', 'pruned']),
});

/** Signs for the deployment. */
export interface Signer {
  readonly publicKey: PublicKey;
  /** @returns A compact JWS, which {@link readCheckpoint} reads. */
  sign(checkpoint: Checkpoint): Promise<string>;
}

/** A checkpoint that nobody known has signed. */
export class InvalidCheckpoint extends Error {
  override readonly name = 'InvalidCheckpoint';
}

/**
 * The deployment's newest key, made and sealed under the master keys on first use.
 *
 * @throws {SealError} when the key can't be opened with these master keys.
 */
export async function openSigner(db: Database, master: MasterKeys): Promise<Signer> {
  const row = (await newestKey(db)) ?? (await makeKey(db, master));
  const { secret, publicKey } = await openKey(master, row);
  return {
    publicKey,
    sign: (checkpoint) =>
      new CompactSign(new TextEncoder().encode(JSON.stringify(checkpoint)))
        .setProtectedHeader({ alg: ALGORITHM, typ: TYPE, kid: publicKey.kid })
        .sign(secret),
  };
}

/**
 * Every public key that has signed, each taken from the sealed key itself: a key that somebody
 * put into the database is none.
 *
 * @throws {SealError} when a key can't be opened with these master keys.
 */
export async function readPublicKeys(db: Database, master: MasterKeys): Promise<PublicKey[]> {
  const rows = await db.read('select * from signing_keys order by created_at, id', []);
  return await Promise.all(rows.map(async (row) => (await openKey(master, row)).publicKey));
}

/**
 * Reads a checkpoint that one of the keys has signed.
 *
 * @throws {InvalidCheckpoint}
 */
export async function readCheckpoint(jws: string, keys: readonly PublicKey[]): Promise<Checkpoint> {
  if (jws.length > MAX_JWS_CHARS) throw new InvalidCheckpoint('The checkpoint is too long.');
  try {
    const { payload, protectedHeader } = await compactVerify(
      jws,
      async ({ kid }) => await importJWK(keyOf(keys, kid), ALGORITHM),
      { algorithms: [ALGORITHM] },
    );
    if (protectedHeader.typ !== TYPE) throw new InvalidCheckpoint('It is no checkpoint.');
    return CHECKPOINT.parse(JSON.parse(new TextDecoder().decode(payload)));
  } catch (error) {
    if (error instanceof InvalidCheckpoint) throw error;
    throw new InvalidCheckpoint('The signature of the checkpoint is not valid.');
  }
}

function keyOf(keys: readonly PublicKey[], kid: string | undefined): PublicKey {
  const key = keys.find((each) => each.kid === kid);
  if (!key) throw new InvalidCheckpoint('The checkpoint is signed with an unknown key.');
  return key;
}

/** Wraps the keys that sign under the current master key. @returns how many it had to. */
export async function rewrapSigningKeys(db: Database, master: MasterKeys): Promise<number> {
  const rows = await db.read('select id, wrapped from signing_keys', []);
  let count = 0;
  for (const { id, wrapped } of rows) {
    const rewrapped = await rewrapOrgKey(master, PLATFORM_CHAIN, String(wrapped));
    if (!rewrapped) continue;
    await db.write([
      {
        // Compared, so that two rotations at once can't undo each other's work.
        sql: 'update signing_keys set wrapped = ?2 where id = ?1 and wrapped = ?3',
        args: [id!, rewrapped, wrapped!],
      },
    ]);
    count++;
  }
  return count;
}

async function newestKey(db: Database): Promise<Row | undefined> {
  return await db.first('select * from signing_keys order by created_at desc, id limit 1', []);
}

async function makeKey(db: Database, master: MasterKeys): Promise<Row> {
  const pair = await generateKeyPair(ALGORITHM, { extractable: true });
  const jwk = await exportJWK(pair.privateKey);
  const id = await calculateJwkThumbprint(jwk);
  const wrapped = await makeOrgKey(master, PLATFORM_CHAIN);
  const secret = await seal(master, wrapped, place(id), JSON.stringify(jwk));
  await db.write([
    {
      // Of two processes that make the first key at once, one keeps its own.
      sql: `insert into signing_keys (id, public_key, wrapped, secret, created_at)
        select ?1, ?2, ?3, ?4, ?5 where not exists (select 1 from signing_keys)`,
      args: [id, JSON.stringify(publicPart(jwk, id)), wrapped, secret, Date.now()],
    },
  ]);
  return (await newestKey(db))!;
}

async function openKey(
  master: MasterKeys,
  row: Row,
): Promise<{ secret: CryptoKey | Uint8Array; publicKey: PublicKey }> {
  const id = String(row.id);
  const text = await open(master, String(row.wrapped), place(id), String(row.secret));
  const jwk = JSON.parse(text) as JWK;
  return { secret: await importJWK(jwk, ALGORITHM), publicKey: publicPart(jwk, id) };
}

function publicPart({ kty, crv, x }: JWK, kid: string): PublicKey {
  return PUBLIC_KEY.parse({ kty, crv, x, kid });
}

function place(row: string): SealContext {
  return { org: PLATFORM_CHAIN, table: 'signing_keys', column: 'secret', row };
}
