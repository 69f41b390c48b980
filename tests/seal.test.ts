/** Sealing: a secret opens in its own place, with its own keys, unaltered, and in no other way. */

import { describe, expect, test } from 'bun:test';
import { createCipheriv, createDecipheriv, createHash, hkdfSync } from 'node:crypto';
import fc from 'fast-check';
import {
  checkSeals,
  constantTimeEqual,
  Digest,
  digest,
  hashToken,
  keepOpened,
  MAX_FIELD_BYTES,
  MAX_MASTER_KEYS,
  MAX_OPENED,
  MAX_SEALS,
  MAX_SECRET_BYTES,
  makeOrgKey,
  newId,
  newMasterKey,
  newToken,
  OPENED_MS,
  open,
  openMasterKeys,
  randomEntropy,
  rewrapOrgKey,
  type SealContext,
  SealError,
  type SealErrorCode,
  seal,
} from '../db/seal.ts';
import { isId, type OrgId } from '../schema/ids.ts';
import { readToken } from '../schema/token.ts';

const ORG = newId('org');
const PLACE: SealContext = {
  org: ORG,
  table: 'provider_keys',
  column: 'sealed',
  row: 'key_1',
  provider: 'openai',
  host: 'api.openai.com',
};
const SECRET = 'sk-canary-4f1d';
const MASTER_TEXT = newMasterKey('k1');
const MASTER = openMasterKeys(MASTER_TEXT);
const ORG_KEY = await makeOrgKey(MASTER, ORG);
const SEALED = await seal(MASTER, ORG_KEY, PLACE, SECRET);

/** The code of the error that a promise rejects with; anything else fails the test. */
async function codeOf(promise: Promise<unknown>): Promise<SealErrorCode> {
  const error = await promise.then(
    () => 'nothing thrown',
    (reason: unknown) => reason,
  );
  if (!(error instanceof SealError)) throw new Error(`not a SealError: ${error}`);
  const shown = `${error.message} ${error.stack} ${JSON.stringify(error)}`;
  for (const hidden of [SECRET, SEALED, ORG_KEY, MASTER_TEXT.slice(3)]) {
    expect(shown).not.toContain(hidden);
  }
  return error.code;
}

const field = fc.string({ unit: 'binary', maxLength: 40 });
const place: fc.Arbitrary<SealContext> = fc.record(
  {
    org: fc.constantFrom(ORG),
    table: field,
    column: field,
    row: field,
    provider: field,
    host: field,
  },
  { requiredKeys: ['org', 'table', 'column', 'row'] },
);

/** Every text that differs from `text` in one bit, or whose payload does. */
function* flips(text: string): Generator<string> {
  for (let bit = 0; bit < text.length * 8; bit++) {
    const at = bit >> 3;
    const char = String.fromCharCode(text.charCodeAt(at) ^ (1 << (bit & 7)));
    yield text.slice(0, at) + char + text.slice(at + 1);
  }
  const start = text.lastIndexOf('.') + 1;
  const payload = Buffer.from(text.slice(start), 'base64url');
  for (let bit = 0; bit < payload.length * 8; bit++) {
    const flipped = Buffer.from(payload);
    flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    yield text.slice(0, start) + flipped.toString('base64url');
  }
}

describe('seal and open', () => {
  test('whatever is sealed opens again, in any place', async () => {
    const text = fc.string({ unit: 'binary', maxLength: 300 });
    await fc.assert(
      fc.asyncProperty(place, text, async (where, secret) => {
        const sealed = await seal(MASTER, ORG_KEY, where, secret);
        expect(await open(MASTER, ORG_KEY, where, sealed)).toBe(secret);
      }),
    );
  });

  test('empty secrets, byte order marks and the longest secret survive', async () => {
    for (const secret of ['', '\ufeffx', '\0', 'é'.repeat(MAX_SECRET_BYTES / 2)]) {
      const sealed = await seal(MASTER, ORG_KEY, PLACE, secret);
      expect((await open(MASTER, ORG_KEY, PLACE, sealed)) === secret).toBe(true);
    }
  });

  test('a secret or field that is too long or not well-formed is refused', async () => {
    const long = 'é'.repeat(MAX_SECRET_BYTES / 2 + 1);
    expect(await codeOf(seal(MASTER, ORG_KEY, PLACE, long))).toBe('invalid_input');
    expect(await codeOf(seal(MASTER, ORG_KEY, PLACE, '\ud800'))).toBe('invalid_input');
    for (const row of ['x'.repeat(MAX_FIELD_BYTES + 1), '\udfff']) {
      const where = { ...PLACE, row };
      expect(await codeOf(seal(MASTER, ORG_KEY, where, SECRET))).toBe('invalid_input');
    }
  });

  test('a single flipped bit anywhere in a sealed secret is refused', async () => {
    let tried = 0;
    for (const flipped of flips(SEALED)) {
      const code = await codeOf(open(MASTER, ORG_KEY, PLACE, flipped));
      expect(['corrupt', 'unknown_key', 'wrong_key', 'not_authentic']).toContain(code);
      tried++;
    }
    expect(tried).toBeGreaterThan(SEALED.length * 8);
  }, 30_000);

  test('a single flipped bit anywhere in an org key is refused', async () => {
    for (const flipped of flips(ORG_KEY)) {
      const code = await codeOf(open(MASTER, flipped, PLACE, SEALED));
      expect(['corrupt', 'unknown_key', 'wrong_key', 'not_authentic']).toContain(code);
    }
  }, 30_000);

  test('text that is not a sealed value is refused as corrupt', async () => {
    const short = `${SEALED.slice(0, SEALED.indexOf('.', 3))}.AAAA`;
    const huge = `v1.k1.${'AAAA'.repeat(MAX_SECRET_BYTES / 2)}`;
    const wrong = [
      huge,
      '',
      'v1',
      'v1..',
      'v1.k1.',
      short,
      `${SEALED}.`,
      `${SEALED}=`,
      `${SEALED} `,
    ];
    for (const text of [...wrong, SEALED.replace('v1', 'v2')]) {
      expect(await codeOf(open(MASTER, ORG_KEY, PLACE, text))).toBe('corrupt');
      expect(await codeOf(open(MASTER, text, PLACE, SEALED))).toBe('corrupt');
    }
  });

  test('a sealed secret and its org key can not take each other’s place', async () => {
    expect(await codeOf(open(MASTER, SEALED, PLACE, ORG_KEY))).toBe('corrupt');
  });
});

describe('the place of a secret', () => {
  test('a copy in another table, column, row, for another provider or host does not open', async () => {
    for (const name of ['table', 'column', 'row', 'provider', 'host'] as const) {
      const { [name]: own = '', ...others } = PLACE;
      for (const value of ['', `${own}x`, own.slice(1), own.toUpperCase(), `${own}\0`]) {
        const where: SealContext = { ...PLACE, [name]: value };
        expect(await codeOf(open(MASTER, ORG_KEY, where, SEALED))).toBe('not_authentic');
      }
      if (name === 'provider' || name === 'host') {
        const where = { ...others, table: PLACE.table, column: PLACE.column, row: PLACE.row };
        expect(await codeOf(open(MASTER, ORG_KEY, where, SEALED))).toBe('not_authentic');
      }
    }
  });

  test('a place without a provider or host is not one whose provider or host is empty', async () => {
    const { org, table, column, row } = PLACE;
    const bare = { org, table, column, row };
    const empties = [{ provider: '' }, { host: '' }, { provider: '', host: '' }];
    for (const empty of empties.map((each) => ({ ...bare, ...each }))) {
      const [sealed, other] = await Promise.all(
        [bare, empty].map((where) => seal(MASTER, ORG_KEY, where, SECRET)),
      );
      expect(await codeOf(open(MASTER, ORG_KEY, empty, sealed!))).toBe('not_authentic');
      expect(await codeOf(open(MASTER, ORG_KEY, bare, other!))).toBe('not_authentic');
    }
  });

  test('a copy in another org opens neither with the old org’s key nor with its own', async () => {
    const org = newId('org');
    const where = { ...PLACE, org };
    const own = await makeOrgKey(MASTER, org);
    expect(await codeOf(open(MASTER, ORG_KEY, where, SEALED))).toBe('not_authentic');
    expect(await codeOf(open(MASTER, own, where, SEALED))).toBe('unknown_key');
    const renamed = SEALED.replace(keyName(SEALED), keyName(await seal(MASTER, own, where, '')));
    expect(await codeOf(open(MASTER, own, where, renamed))).toBe('wrong_key');
  });

  test('no two places are the same to the seal, wherever their text is cut', async () => {
    await fc.assert(
      fc.asyncProperty(place, place, async (a, b) => {
        fc.pre(JSON.stringify(sorted(a)) !== JSON.stringify(sorted(b)));
        const sealed = await seal(MASTER, ORG_KEY, a, SECRET);
        expect(await codeOf(open(MASTER, ORG_KEY, b, sealed))).toBe('not_authentic');
      }),
    );
    const text = 'abcd';
    for (let cut = 0; cut < text.length; cut++) {
      const a = { ...PLACE, column: text.slice(0, cut), row: text.slice(cut) };
      const b = { ...PLACE, column: text.slice(0, cut + 1), row: text.slice(cut + 1) };
      const sealed = await seal(MASTER, ORG_KEY, a, SECRET);
      expect(await codeOf(open(MASTER, ORG_KEY, b, sealed))).toBe('not_authentic');
    }
  });

  function keyName(blob: string): string {
    return blob.split('.')[1] ?? '';
  }

  function sorted({ org, table, column, row, provider, host }: SealContext): unknown[] {
    return [org, table, column, row, provider ?? null, host ?? null];
  }
});

describe('rotation', () => {
  const [oldKey, newKey] = [newMasterKey('2025'), newMasterKey('2026')];
  const before = openMasterKeys(oldKey);
  const during = openMasterKeys(`${newKey},${oldKey}`);
  const after = openMasterKeys(newKey);

  test('a re-wrapped org key opens its secrets after the old master key is gone', async () => {
    const wrapped = await makeOrgKey(before, ORG);
    const sealed = await seal(before, wrapped, PLACE, SECRET);
    expect(await open(during, wrapped, PLACE, sealed)).toBe(SECRET);
    const rewrapped = await rewrapOrgKey(during, ORG, wrapped);
    expect(await open(after, rewrapped ?? '', PLACE, sealed)).toBe(SECRET);
    expect(await open(after, rewrapped ?? '', PLACE, await seal(during, wrapped, PLACE, 'x'))).toBe(
      'x',
    );
  });

  test('an org key that was not re-wrapped needs the old master key', async () => {
    const wrapped = await makeOrgKey(before, ORG);
    const sealed = await seal(before, wrapped, PLACE, SECRET);
    expect(await codeOf(open(after, wrapped, PLACE, sealed))).toBe('unknown_key');
    expect(await codeOf(rewrapOrgKey(after, ORG, wrapped))).toBe('unknown_key');
    expect(await codeOf(rewrapOrgKey(during, newId('org'), wrapped))).toBe('not_authentic');
  });

  test('re-wrapping again changes nothing', async () => {
    const rewrapped = await rewrapOrgKey(during, ORG, await makeOrgKey(before, ORG));
    expect(rewrapped).toBeString();
    expect(await rewrapOrgKey(during, ORG, rewrapped ?? '')).toBeUndefined();
    expect(await rewrapOrgKey(after, ORG, rewrapped ?? '')).toBeUndefined();
  });
});

describe('key commitment', () => {
  const bytes = [randomEntropy(32), randomEntropy(32)] as const;
  const [one, two] = bytes.map((key) =>
    openMasterKeys(`k1:${Buffer.from(key).toString('base64')}`),
  );

  test('another master key under the same id is told apart from an altered value', async () => {
    const wrapped = await makeOrgKey(one!, ORG);
    const sealed = await seal(one!, wrapped, PLACE, SECRET);
    expect(await codeOf(open(two!, wrapped, PLACE, sealed))).toBe('wrong_key');
  });

  test('the format can be read with HKDF and AES-GCM of another library', async () => {
    const payload = Buffer.from((await makeOrgKey(one!, ORG)).split('.')[2] ?? '', 'base64url');
    const [id, salt, commitment, nonce, ciphertext, tag] = cut(payload, [12, 32, 32, 12, 32, 16]);
    const derived = derive(bytes[0], salt!);
    expect(derived.commitment.equals(commitment!)).toBe(true);
    expect(decipher(derived.cipher, nonce!, aad(id!), ciphertext!, tag!)).toHaveLength(32);
  });

  test('a ciphertext made to be authentic under two keys opens under its own key only', async () => {
    const [id, salt, nonce] = [Buffer.alloc(12, 1), Buffer.alloc(32, 2), Buffer.alloc(12, 3)];
    const [a, b] = [derive(bytes[0], salt), derive(bytes[1], salt)];
    const { ciphertext, tag } = collide(a.cipher, b.cipher, nonce, aad(id));
    for (const { cipher } of [a, b]) {
      expect(decipher(cipher, nonce, aad(id), ciphertext, tag)).toHaveLength(32);
    }
    const payload = Buffer.concat([id, salt, a.commitment, nonce, ciphertext, tag]);
    const wrapped = `v1.k1.${payload.toString('base64url')}`;
    const sealed = await seal(one!, wrapped, PLACE, SECRET);
    expect(await open(one!, wrapped, PLACE, sealed)).toBe(SECRET);
    expect(await codeOf(seal(two!, wrapped, PLACE, SECRET))).toBe('wrong_key');
  });

  function derive(key: Uint8Array, salt: Buffer): { cipher: Buffer; commitment: Buffer } {
    const derived = Buffer.from(hkdfSync('sha256', key, salt, 'rungate v1 org key', 64));
    return { cipher: derived.subarray(0, 32), commitment: derived.subarray(32) };
  }

  function aad(id: Buffer): Buffer {
    const fields = ['v1', 'k1', id.toString('base64url'), ORG].map((text) => {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(text.length);
      return Buffer.concat([length, Buffer.from(text)]);
    });
    return Buffer.concat(fields);
  }
});

describe('master keys', () => {
  const good = Buffer.from(randomEntropy(32)).toString('base64');

  test('the first is current, and surrounding spaces do not matter', () => {
    const master = openMasterKeys(` a:${good} , ${newMasterKey('b')}\n`);
    expect(master.current).toBe('a');
    expect([...master.keys.keys()]).toEqual(['a', 'b']);
  });

  test('a list that is malformed, short, weak or doubled is refused without repeating it', () => {
    const weak = Buffer.alloc(32, 7).toString('base64');
    const short = Buffer.from(randomEntropy(31)).toString('base64');
    const many = Array.from({ length: MAX_MASTER_KEYS + 1 }, (_, at) => newMasterKey(`m${at}`));
    const hex = Buffer.from(randomEntropy(32)).toString('hex');
    const lists = [
      '',
      good,
      `:${good}`,
      `${good}:a`,
      `a b:${good}`,
      `${'a'.repeat(33)}:${good}`,
      `a:${good}=`,
      `a:${good.slice(0, -1)}`,
      `a:${good.slice(0, 20)} ${good.slice(20)}`,
      `a:${hex}`,
      `a:${short}`,
      `a:${weak}`,
      `a:${good},`,
      `a:${good},a:${Buffer.from(randomEntropy(32)).toString('base64')}`,
      `a:${good},b:${good}`,
      many.join(','),
    ];
    for (const text of lists) {
      const message = refusalOf(() => openMasterKeys(text));
      for (const part of text.split(/[:, ]/).filter((each) => each.length > 3)) {
        expect(message).not.toContain(part);
      }
    }
    expect(openMasterKeys(many.slice(1).join(',')).keys.size).toBe(MAX_MASTER_KEYS);
  });

  test('neither inspecting nor serialising the keys shows them', async () => {
    const master = openMasterKeys(`a:${good}`);
    const key = (await master.keys.get('a'))!;
    const hex = Buffer.from(good, 'base64').toString('hex');
    for (const text of [Bun.inspect(master), JSON.stringify(master), Bun.inspect(key)]) {
      expect(text).not.toContain(good);
      expect(text.replace(/[^0-9a-f]/g, '')).not.toContain(hex);
    }
    expect(key.extractable).toBe(false);
  });

  test('a new master key needs a usable id', () => {
    expect(refusalOf(() => newMasterKey('a:b'))).toContain('id');
  });

  function refusalOf(call: () => unknown): string {
    try {
      call();
    } catch (error) {
      if (error instanceof SealError && error.code === 'invalid_master_keys') return error.message;
      throw error;
    }
    throw new Error('nothing was refused');
  }
});

describe('opened secrets', () => {
  test('a secret is remembered until its minute is over, and answered without a promise', async () => {
    let now = 1000;
    const secrets = keepOpened(MASTER, () => now);
    expect(secrets.open(ORG_KEY, PLACE, SEALED)).toBeInstanceOf(Promise);
    expect(await secrets.open(ORG_KEY, PLACE, SEALED)).toBe(SECRET);
    now += OPENED_MS - 1;
    expect(secrets.open(ORG_KEY, { ...PLACE }, `${SEALED}`)).toBe(SECRET);
    now += 1;
    expect(secrets.open(ORG_KEY, PLACE, SEALED)).toBeInstanceOf(Promise);
  });

  test('a memory answers for the same blobs and place only', async () => {
    const secrets = keepOpened(MASTER, () => 0);
    await secrets.open(ORG_KEY, PLACE, SEALED);
    const other = await makeOrgKey(MASTER, ORG);
    const orgOf = { ...PLACE, org: newId('org') };
    expect(await codeOf(asked(secrets.open(other, PLACE, SEALED)))).toBe('unknown_key');
    expect(await codeOf(asked(secrets.open('', PLACE, SEALED)))).toBe('corrupt');
    expect(await codeOf(asked(secrets.open(ORG_KEY, orgOf, SEALED)))).toBe('not_authentic');
    for (const name of ['table', 'column', 'row', 'provider', 'host'] as const) {
      const where: SealContext = { ...PLACE, [name]: 'other' };
      expect(await codeOf(asked(secrets.open(ORG_KEY, where, SEALED)))).toBe('not_authentic');
    }
    expect(secrets.open(ORG_KEY, PLACE, SEALED)).toBe(SECRET);
  });

  test('failures are not remembered', async () => {
    const secrets = keepOpened(MASTER, () => 0);
    const where = { ...PLACE, row: 'key_2' };
    for (let time = 0; time < 2; time++) {
      expect(await codeOf(asked(secrets.open(ORG_KEY, where, SEALED)))).toBe('not_authentic');
    }
  });

  test('the place that was asked for is kept, not what its object becomes', async () => {
    const secrets = keepOpened(MASTER, () => 0);
    const where = { ...PLACE };
    const opened = secrets.open(ORG_KEY, where, SEALED);
    where.row = 'key_2';
    expect(await opened).toBe(SECRET);
    expect(await codeOf(asked(secrets.open(ORG_KEY, where, SEALED)))).toBe('not_authentic');
  });

  test('the oldest goes when there are too many, and a clock set back forgets all', async () => {
    let now = 1000;
    const secrets = keepOpened(MASTER, () => now);
    const all = await sealMany(MAX_OPENED + 1);
    for (const sealed of all) await secrets.open(ORG_KEY, PLACE, sealed);
    expect(secrets.open(ORG_KEY, PLACE, all[1]!)).toBe(SECRET);
    expect(secrets.open(ORG_KEY, PLACE, all[MAX_OPENED]!)).toBe(SECRET);
    expect(secrets.open(ORG_KEY, PLACE, all[0]!)).toBeInstanceOf(Promise);
    now -= 1;
    secrets.forgetOld();
    expect(secrets.open(ORG_KEY, PLACE, all[MAX_OPENED]!)).toBeInstanceOf(Promise);
  }, 30_000);

  test('long secrets are opened each time', async () => {
    const secrets = keepOpened(MASTER, () => 0);
    const sealed = await seal(MASTER, ORG_KEY, PLACE, 'x'.repeat(16 * 1024));
    await secrets.open(ORG_KEY, PLACE, sealed);
    expect(secrets.open(ORG_KEY, PLACE, sealed)).toBeInstanceOf(Promise);
  });

  async function asked(answer: string | Promise<string>): Promise<string> {
    expect(answer).toBeInstanceOf(Promise);
    return await answer;
  }
});

test('what version 1 sealed keeps opening', async () => {
  const bytes = Uint8Array.from({ length: 32 }, (_, index) => index);
  const master = openMasterKeys(`k1:${Buffer.from(bytes).toString('base64')}`);
  const org = 'org_0123456789abcdefghjkmnpqrs' as OrgId;
  const where = {
    org,
    table: 'provider_keys',
    column: 'sealed',
    row: 'key_1',
    host: 'api.openai.com',
  };
  const wrapped = [
    'v1.k1.8rS0b6VAtux9MRkdgLV-6KGkf55igD1-NwO3dxN6wXMEClQxgI2uIZuZ1gotiLG0OsaFK7Z2b0',
    '8e5jLqv_O5jZrwLz4bQBP3aU2_ATh9L4HojEfv2vWzvbeu8XbMPp6rQ0VUDlMm0XP7lhNDTONbs501Rz',
    'GoWYBzzGW4Du08erTt_AXzjeFxJw',
  ].join('');
  const sealed = [
    'v1.8rS0b6VAtux9MRkd.nSRaXrLHCWKj9BSnyozFcmI6mPdkmZBovH6rZ3dRylP71wqPtytJWjm7k5ym',
    'b25JD12ACkBSrxSeiouOTZOuAqu9TgDuniUhWHJK8QrChPHJxxb7l7rs6MQ57uxD04wM0oR1MdaFK3yT',
    'hLdZ3vF1nmesh2Ihp9SzH8WXr3Ral6-y_36-ug23c2iR7Gc7s9iD5j01-hNh3bdpmMv9EkW8I1zdXiam',
    '39YAa87ItXrN8loOmiyiT44lBnNaK-6-W7HK6OdnVJ03Y2CoT8kr8sGyYAFOp37Thd5Yh5GxOpy2iVyQ',
  ].join('');
  expect(await open(master, wrapped, where, sealed)).toBe('sk-golden');
});

test('no salt and no nonce repeats in ten thousand seals', async () => {
  const seen = new Set<string>();
  const count = 10_000;
  for (let done = 0; done < count; done += 500) {
    for (const sealed of await sealMany(500)) {
      const payload = Buffer.from(sealed.split('.')[2] ?? '', 'base64url');
      for (const box of [payload.subarray(0, 124), payload.subarray(124)]) {
        seen.add(box.subarray(0, 32).toString('hex')).add(box.subarray(64, 76).toString('hex'));
      }
    }
  }
  expect(seen.size).toBe(4 * count);
}, 60_000);

test('an org key stops sealing at its limit, and at a count that makes no sense', () => {
  for (const count of [0, 1, MAX_SEALS - 1]) expect(() => checkSeals(count)).not.toThrow();
  for (const count of [MAX_SEALS, 2 ** 32, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(() => checkSeals(count)).toThrow(SealError);
  }
});

test('hashes are SHA-256 in hex, whole or in pieces', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 200 })), (pieces) => {
      const whole = Buffer.concat(pieces);
      const running = new Digest();
      for (const piece of pieces) running.update(piece);
      const expected = createHash('sha256').update(whole).digest('hex');
      expect([digest(whole), running.end()]).toEqual([expected, expected]);
    }),
  );
  const abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad';
  expect(hashToken('abc')).toBe(abc);
  const ended = new Digest();
  ended.end();
  expect(() => ended.end()).toThrow();
});

test('bytes are equal only when all of them are', () => {
  fc.assert(
    fc.property(fc.uint8Array(), fc.uint8Array(), (a, b) => {
      expect(constantTimeEqual(a, b)).toBe(Buffer.compare(a, b) === 0);
      expect(constantTimeEqual(a, Uint8Array.from(a))).toBe(true);
    }),
  );
});

test('new tokens and ids are well-formed and never repeat, across refills of the pool', () => {
  const tokens = Array.from({ length: 2000 }, () => newToken('admin'));
  expect(tokens.every((text) => readToken(text)?.kind === 'admin')).toBe(true);
  expect(new Set(tokens).size).toBe(2000);
  const ids = Array.from({ length: 2000 }, () => newId('run', 0));
  expect(ids.every((id) => isId('run', id))).toBe(true);
  const halves = ids.flatMap((id) => [id.slice(-16, -8), id.slice(-8)]);
  expect(new Set(halves).size).toBe(4000);
  expect(newId('step', 1) < newId('step', 2)).toBe(true);
});

test('randomEntropy gives as many bytes as asked for, or refuses', () => {
  for (const length of [0, 1, 65_536]) expect(randomEntropy(length)).toHaveLength(length);
  for (const length of [-1, 1.5, Number.NaN, 65_537]) {
    expect(() => randomEntropy(length)).toThrow(RangeError);
  }
});

function sealMany(count: number): Promise<string[]> {
  return Promise.all(Array.from({ length: count }, () => seal(MASTER, ORG_KEY, PLACE, SECRET)));
}

function cut(bytes: Buffer, lengths: readonly number[]): Buffer[] {
  let at = 0;
  return lengths.map((length) => {
    at += length;
    return bytes.subarray(at - length, at);
  });
}

function decipher(key: Buffer, nonce: Buffer, data: Buffer, text: Buffer, tag: Buffer): Buffer {
  const gcm = createDecipheriv('aes-256-gcm', key, nonce).setAAD(data).setAuthTag(tag);
  return Buffer.concat([gcm.update(text), gcm.final()]);
}

/** Two blocks and a tag that AES-GCM accepts under both keys: the second block is solved for. */
function collide(
  a: Buffer,
  b: Buffer,
  nonce: Buffer,
  data: Buffer,
): Record<'ciphertext' | 'tag', Buffer> {
  const blocks = [...splitBlocks(data), 5n, 0n, (BigInt(data.length * 8) << 64n) | 256n];
  const first = Buffer.concat([nonce, Buffer.from([0, 0, 0, 1])]);
  const [sideA, sideB] = [a, b].map((key) => {
    const hashKey = toBigInt(encryptBlock(key, Buffer.alloc(16)));
    const tag = toBigInt(encryptBlock(key, first)) ^ ghash(hashKey, blocks);
    return { square: multiply(hashKey, hashKey), tag };
  }) as [{ square: bigint; tag: bigint }, { square: bigint; tag: bigint }];
  const solved = multiply(sideA.tag ^ sideB.tag, invert(sideA.square ^ sideB.square));
  const tag = sideA.tag ^ multiply(solved, sideA.square);
  return { ciphertext: Buffer.concat([toBlock(5n), toBlock(solved)]), tag: toBlock(tag) };
}

function ghash(hashKey: bigint, blocks: readonly bigint[]): bigint {
  return blocks.reduce((sum, block) => multiply(sum ^ block, hashKey), 0n);
}

/** Multiplication in the field of GCM (NIST SP 800-38D, section 6.3). */
function multiply(x: bigint, y: bigint): bigint {
  let product = 0n;
  let shifted = y;
  for (let bit = 127n; bit >= 0n; bit--) {
    if ((x >> bit) & 1n) product ^= shifted;
    shifted = shifted & 1n ? (shifted >> 1n) ^ (0xe1n << 120n) : shifted >> 1n;
  }
  return product;
}

/** x to the power 2^128 - 2. */
function invert(x: bigint): bigint {
  let inverse = 1n << 127n;
  for (
    let square = multiply(x, x), step = 1;
    step < 128;
    step++, square = multiply(square, square)
  ) {
    inverse = multiply(inverse, square);
  }
  return inverse;
}

function encryptBlock(key: Buffer, block: Buffer): Buffer {
  return createCipheriv('aes-256-ecb', key, null).setAutoPadding(false).update(block);
}

function splitBlocks(bytes: Buffer): bigint[] {
  const padded = Buffer.concat([bytes, Buffer.alloc((16 - (bytes.length % 16)) % 16)]);
  return cut(padded, Array(padded.length / 16).fill(16)).map(toBigInt);
}

function toBigInt(block: Buffer): bigint {
  return BigInt(`0x${block.toString('hex')}`);
}

function toBlock(value: bigint): Buffer {
  return Buffer.from(value.toString(16).padStart(32, '0'), 'hex');
}
