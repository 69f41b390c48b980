/** The vault of an org: longer texts and bytes sealed under the org's key, each seal counted. */

import type { Statement } from './client.ts';
import type { Org } from './org.ts';
import {
  checkSeals,
  deriveSecret,
  MAX_SECRET_BYTES,
  type MasterKeys,
  open,
  type Sealed,
  seal,
} from './seal.ts';

/** Where a sealed value belongs; it opens nowhere else. */
export interface Shelf {
  readonly table: string;
  readonly column: string;
  readonly row: string;
}

/** Bytes of one part: as base64 they are as long as a sealed text may be. */
const PART_BYTES = (MAX_SECRET_BYTES / 4) * 3;

/** An org's key, ready to seal and open. */
export class Vault {
  readonly #org: Org;
  readonly #master: MasterKeys;
  readonly #wrapped: string;
  readonly #seals: number;
  #made = 0;

  /** Use {@link openVault}. */
  constructor(org: Org, master: MasterKeys, wrapped: string, seals: number) {
    this.#org = org;
    this.#master = master;
    this.#wrapped = wrapped;
    this.#seals = seals;
  }

  /**
   * Seals a text; commit {@link Vault.count} with it.
   *
   * @throws {SealError} when it is too long or not well-formed, or the key has sealed enough.
   */
  seal(shelf: Shelf, text: string): Promise<Sealed> {
    checkSeals(this.#seals + this.#made++);
    return seal(this.#master, this.#wrapped, { org: this.#org.id, ...shelf }, text);
  }

  /** Opens what {@link Vault.seal} made for the same place. @throws {SealError} */
  open(shelf: Shelf, sealed: Sealed): Promise<string> {
    return open(this.#master, this.#wrapped, { org: this.#org.id, ...shelf }, sealed);
  }

  /** Seals bytes in as many parts as it takes, the number of each in the row of its place. */
  async sealBytes(shelf: Shelf, bytes: Uint8Array): Promise<Sealed[]> {
    const sealed: Sealed[] = [];
    for (let at = 0; at === 0 || at < bytes.length; at += PART_BYTES) {
      const text = bytes.subarray(at, at + PART_BYTES).toBase64();
      sealed.push(await this.seal(partOf(shelf, sealed.length), text));
    }
    return sealed;
  }

  /** Opens what {@link Vault.sealBytes} made, given in the same order. @throws {SealError} */
  async openBytes(shelf: Shelf, parts: readonly Sealed[]): Promise<Uint8Array<ArrayBuffer>[]> {
    const opened = parts.map((part, at) => this.open(partOf(shelf, at), part));
    return (await Promise.all(opened)).map((text) => Uint8Array.fromBase64(text));
  }

  /** The org's secret for a use beside sealing; see {@link deriveSecret}. */
  secret(use: string): Promise<Uint8Array<ArrayBuffer>> {
    return deriveSecret(this.#master, this.#org.id, this.#wrapped, use);
  }

  /** The statement that counts the seals made; put it into the transaction that keeps them. */
  count(): Statement {
    return this.#org.statement(
      'update org_keys set seals = seals + ?2 where org_id = ?1',
      this.#made,
    );
  }
}

function partOf(shelf: Shelf, number: number): Shelf {
  return { ...shelf, row: `${shelf.row}/${number}` };
}

/**
 * Reads the org's key.
 *
 * @throws {SealError} `exhausted` for an org whose key is gone.
 */
export async function openVault(org: Org, master: MasterKeys): Promise<Vault> {
  const row = await org.first('select wrapped, seals from org_keys where org_id = ?1');
  checkSeals(Number(row?.seals ?? Number.NaN));
  return new Vault(org, master, String(row?.wrapped), Number(row?.seals));
}
