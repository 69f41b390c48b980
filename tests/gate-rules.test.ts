/** What gates come to, what callers prefer, and what approvers are shown: rules without a server. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import type { GateId } from '../schema/ids.ts';
import { indentJson } from '../schema/indent.ts';
import {
  appliedOf,
  type GateStand,
  type GateStatus,
  type GateSubject,
  MAX_STREAM_WAIT_S,
  MAX_WAIT_S,
  readPrefer,
  standOf,
  statusAt,
  subjectText,
  waitOf,
} from '../schema/rules/gate.ts';
import { visible } from '../schema/visible.ts';

const STATUSES: readonly GateStatus[] = ['pending', 'approved', 'rejected', 'expired', 'released'];

const gate: fc.Arbitrary<GateStand> = fc.record({
  id: fc.string().map((id) => id as GateId),
  tool: fc.string(),
  rule: fc.constant('tools.requireApproval[0]'),
  status: fc.constantFrom(...STATUSES),
  expiresAt: fc.integer({ min: 0, max: 100 }),
});

describe('several gates', () => {
  test('let an answer pass only when each is approved and none has expired', () => {
    fc.assert(
      fc.property(
        fc.array(gate, { minLength: 1 }),
        fc.integer({ min: 0, max: 100 }),
        (gates, now) => {
          const isPassing = gates.every(
            ({ status, expiresAt }) => status === 'approved' && expiresAt > now,
          );
          expect(standOf(gates, now) === 'approved').toBe(isPassing);
        },
      ),
    );
  });

  test('are rejected by any rejection, whatever the others are', () => {
    fc.assert(
      fc.property(fc.array(gate), gate, fc.array(gate), (before, one, after) => {
        const gates = [...before, { ...one, status: 'rejected' as const }, ...after];
        expect(standOf(gates, 50)).toBe('rejected');
      }),
    );
  });

  test('never come back to life: what has expired stays so', () => {
    fc.assert(
      fc.property(gate, fc.nat(100), fc.nat(100), (one, now, more) => {
        if (statusAt(one, now) === 'expired') expect(statusAt(one, now + more)).toBe('expired');
      }),
    );
  });
});

test('two different calls are never bound to the same text', () => {
  const text = fc.string({ unit: 'binary', maxLength: 6 });
  const subject = fc.record({
    ...{ orgId: text, agentId: text, runId: text, policyVersionId: text, tool: text },
    ...{ argsText: text, server: fc.option(text) },
  }) as unknown as fc.Arbitrary<GateSubject>;
  fc.assert(
    fc.property(subject, subject, (one, two) => {
      const isSame = Object.keys(one).every((key) => {
        return one[key as keyof GateSubject] === two[key as keyof GateSubject];
      });
      expect(subjectText(one) === subjectText(two)).toBe(isSame);
    }),
  );
});

describe('Prefer', () => {
  test.each([
    [null, undefined, false],
    ['', undefined, false],
    ['wait=10', 10, false],
    ['Wait="10"', 10, false],
    ['respond-async', undefined, true],
    ['respond-async, wait=5', 5, true],
    ['wait = 7 ; foo=bar, Respond-Async', 7, true],
    ['wait=1, wait=2', 1, false],
    ['wait=-1', undefined, false],
    ['wait=1.5', undefined, false],
    ['wait=99999999999', undefined, false],
    ['return=minimal, handling=lenient', undefined, false],
  ])('%p is read as RFC 7240 says', (header, waitS, isAsync) => {
    expect(readPrefer(header)).toEqual({ waitS, isAsync });
  });

  test('a caller that prefers a 202 is kept no longer than it says, whatever the policy holds', () => {
    expect(waitOf(readPrefer('respond-async'), 60, false)).toBe(0);
    expect(waitOf(readPrefer('respond-async, wait=5'), 60, true)).toBe(5);
    expect(waitOf(readPrefer(null), 60, false)).toBe(60);
  });

  test('any header is read, and no wait is longer than may be', () => {
    fc.assert(
      fc.property(fc.string(), fc.nat(240), fc.boolean(), (header, holdS, isStream) => {
        const preference = readPrefer(header);
        const waitS = waitOf(preference, holdS, isStream);
        expect(waitS).toBeLessThanOrEqual(isStream ? MAX_STREAM_WAIT_S : MAX_WAIT_S);
        expect(readPrefer(appliedOf(preference, waitS)).isAsync).toBe(preference.isAsync);
      }),
    );
  });
});

describe('arguments shown to an approver', () => {
  test('are laid out as JSON.stringify does', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(indentJson(JSON.stringify(value))).toBe(JSON.stringify(value, null, 2));
      }),
    );
  });

  test.each([
    ['{"a":12345678901234567890,"a":1e400}', '{\n  "a": 12345678901234567890,\n  "a": 1e400\n}'],
    ['{"\\u0061" :\t"\\"{" }', '{\n  "\\u0061": "\\"{"\n}'],
    ['not JSON {', 'not JSON {'],
    ['', ''],
  ])('%p keeps every token as it was written', (text, shown) => {
    expect(indentJson(text)).toBe(shown);
  });

  /** What shows nothing, or changes how the rest is read; the last are blank, yet no spaces. */
  const HIDDEN =
    /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800\u{13441}\u{13442}\u{16fe4}\u{1d159}]/u;

  test('show every character that could be there unseen, and no other, as an escape', () => {
    for (let point = 0; point <= 0x10ffff; point++) {
      const character = String.fromCodePoint(point);
      const isHidden = character !== ' ' && HIDDEN.test(character);
      const shown = isHidden ? `\\u{${point.toString(16)}}` : character;
      if (visible(character) !== shown) expect(visible(character)).toBe(shown);
    }
  });

  test.each([
    ['a\u{e0141}b', 'a\\u{e0141}b'],
    ['\u3164\u2800\u00a0 .', '\\u{3164}\\u{2800}\\u{a0} .'],
    ['\u034f\ufe0f\u202e', '\\u{34f}\\u{fe0f}\\u{202e}'],
    ['\ud800\n\t', '\\u{d800}\\u{a}\\u{9}'],
    ['\u{1d159}\u{13441}', '\\u{1d159}\\u{13441}'],
    ['plain – ünïcode 文 e\u0301 😀', 'plain – ünïcode 文 e\u0301 😀'],
  ])('show %j as it is', (text, shown) => {
    expect(visible(text)).toBe(shown);
  });
});
