/** Promises of strict JSON: one reading for whoever checks a body and whoever receives it. */

import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import {
  InvalidJson,
  type Json,
  type JsonObject,
  parseStrict,
  type StrictBody,
  setMember,
  splice,
} from '../schema/json.ts';
import { isFaithful } from '../schema/numbers.ts';

const NONE: ReadonlySet<string> = new Set();
const encoder = new TextEncoder();

const read = (text: string, names = NONE): StrictBody => parseStrict(encoder.encode(text), names);
const edited = (text: string, path: readonly string[], value: Json): string => {
  const body = read(text);
  return new TextDecoder().decode(splice(body.text, [setMember(body, path, value)]));
};
const faultOf = (text: string, names = NONE): string => {
  try {
    read(text, names);
  } catch (error) {
    if (error instanceof InvalidJson) return `${error.message} ${error.at}`;
    throw error;
  }
  return 'accepted';
};

/** Picks of a spelling: each number decides one choice, over and over. */
type Picks = () => number;
const picks = fc.array(fc.nat(1000), { minLength: 1, maxLength: 40 }).map((numbers): Picks => {
  let at = 0;
  return () => numbers[at++ % numbers.length]!;
});

const SPACES = ['', '', '', ' ', '\n', '\t\r\n  '];
const space = (pick: Picks): string => SPACES[pick() % SPACES.length]!;

const spellString = (text: string, pick: Picks): string => {
  let spelled = '';
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    const hex = unit.toString(16).padStart(4, '0');
    const isPair = unit >= 0xd800 && unit < 0xdc00;
    const plain = isPair ? text.slice(at, at + 2) : JSON.stringify(text[at]).slice(1, -1);
    const low = text.charCodeAt(at + 1).toString(16);
    if (pick() % 3 > 0) spelled += plain;
    else spelled += `\\u${pick() % 2 ? hex : hex.toUpperCase()}${isPair ? `\\u${low}` : ''}`;
    if (isPair) at++;
  }
  return `"${spelled}"`;
};

const spell = (value: Json, pick: Picks): string => {
  const pad = (text: string) => space(pick) + text + space(pick);
  if (typeof value === 'string') return pad(spellString(value, pick));
  if (typeof value !== 'object' || value === null) return pad(JSON.stringify(value));
  if (Array.isArray(value)) {
    return pad(`[${value.map((one) => spell(one, pick)).join(',') || space(pick)}]`);
  }
  return pad(spellMembers(Object.entries(value), pick));
};

const spellMembers = (entries: readonly (readonly [string, Json])[], pick: Picks): string => {
  const members = entries.map(
    ([key, one]) => `${space(pick)}${spellString(key, pick)}${space(pick)}:${spell(one, pick)}`,
  );
  return `{${members.join(',') || space(pick)}}`;
};

const json = fc.jsonValue({ stringUnit: 'binary', maxDepth: 5 }) as fc.Arbitrary<Json>;
const key = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 90 }),
  fc.constantFrom('model', '__proto__', 'constructor', '0', ''),
);
const entries = fc.uniqueArray(fc.tuple(key, json), { selector: ([name]) => name, maxLength: 14 });
const object = entries.map((pairs) => Object.fromEntries(pairs) as JsonObject);

describe('parseStrict()', () => {
  test('reads every spelling of every object as JSON.parse does', () => {
    fc.assert(
      fc.property(object, picks, (value, pick) => {
        const text = spell(value, pick);
        const body = read(text);
        expect(body.value).toEqual(JSON.parse(text));
        expect(body.text).toBe(text);
        expect([...body.members.keys()].sort()).toEqual(Object.keys(value).sort());
        for (const [name, { start, end }] of body.members) {
          const part = text.slice(start, end);
          expect(part.trim()).toBe(part);
          expect(JSON.stringify(JSON.parse(part))).toBe(JSON.stringify(body.value[name]));
        }
      }),
      { numRuns: 400 },
    );
  });

  test('refuses a repeated key at any depth, in any spelling, among any others', () => {
    const wrappers = fc.array(fc.tuple(key, fc.boolean(), entries), { maxLength: 6 });
    fc.assert(
      fc.property(entries, key, json, json, wrappers, picks, (others, name, a, b, outer, pick) => {
        const rest = others.filter(([other]) => other !== name);
        const at = pick() % (rest.length + 1);
        const twice = [...rest.slice(0, at), [name, a] as const, ...rest.slice(at)];
        twice.splice(pick() % (twice.length + 1), 0, [name, b]);
        let text = spellMembers(twice, pick);
        for (const [wrapper, isArray, siblings] of outer) {
          const before = spellMembers(siblings, pick).slice(0, -1);
          const open = siblings.some(([sibling]) => sibling === wrapper) ? '{' : before;
          const comma = open.trim() === '{' ? '' : ',';
          const member = `${spellString(wrapper, pick)}:`;
          text = isArray ? `{"list":[1,${text}]}` : `${open}${comma}${member}${text}}`;
        }
        expect(JSON.parse(text)).toBeObject();
        expect(faultOf(text)).toContain('repeats');
      }),
      { numRuns: 400 },
    );
  });

  test('accepts the same key in different objects and keys that share a start', () => {
    for (let count = 1; count < 40; count++) {
      const keys = Array.from(
        { length: count },
        (_, index) => `"k${'x'.repeat(index * 5)}":{"k":1}`,
      );
      expect(read(`{${keys.join(',')}}`).members.size).toBe(count);
      expect(faultOf(`{${keys.join(',')},${keys[count >> 1]}}`)).toContain('repeats');
    }
    expect(faultOf('{"a":{"b":1},"c":[{"b":1},{"b":2}],"b":3}')).toBe('accepted');
  });

  test('forgets the keys of an object with its end, whatever stands between', () => {
    const keys = ['a', '\\u0061', 'b', 'long'.repeat(20)];
    const shape = fc.letrec((tie) => ({
      value: fc.oneof({ maxDepth: 6 }, fc.constant('1'), tie('array'), tie('object')),
      array: fc.array(tie('value'), { maxLength: 2 }).map((items) => `[${items.join(',')}]`),
      object: fc.tuple(fc.array(tie('value'), { maxLength: 3 }), fc.nat(1)).map(([items, from]) => {
        const members = items.map((item, at) => `"${keys[at + (at ? 1 : from)]}":${item}`);
        return `{${members.join(',')}}`;
      }),
    })).object as fc.Arbitrary<string>;
    fc.assert(
      fc.property(shape, (text) => {
        expect(faultOf(text)).toBe('accepted');
      }),
      { numRuns: 2000 },
    );
  });

  test('throws InvalidJson and nothing else, whatever the bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
        try {
          parseStrict(bytes, NONE);
        } catch (error) {
          expect(error).toBeInstanceOf(InvalidJson);
        }
      }),
      { numRuns: 2000 },
    );
  });

  test('accepts nothing that JSON.parse refuses, and names the place of the fault', () => {
    const scrap = fc.constantFrom(...'{}[],:"\\ \t\n\0-+.0123eEuaf', 'true', 'null', '\\u00', 'é');
    const damage = fc.tuple(fc.nat(), fc.nat(3), scrap);
    fc.assert(
      fc.property(object, picks, fc.array(damage, { maxLength: 3 }), (value, pick, damages) => {
        let text = spell(value, pick);
        for (const [where, cut, put] of damages) {
          const at = where % (text.length + 1);
          text = text.slice(0, at) + put + text.slice(at + cut);
        }
        text = text.toWellFormed();
        let native: unknown;
        try {
          native = JSON.parse(text);
        } catch {
          expect(faultOf(text)).not.toMatch(/accepted|cannot be parsed/);
          return;
        }
        const fault = faultOf(text);
        if (fault === 'accepted') expect(read(text).value as unknown).toEqual(native);
        else expect(fault).toMatch(/repeats|surrogate|too large|not an object|byte order/);
      }),
      { numRuns: 4000 },
    );
  });

  test('refuses what readers understand in different ways', () => {
    const faults: [string, string][] = [
      ['{"model":"cheap","m\\u006fdel":"dear"}', 'the key "model" repeats, at offset 18'],
      ['{"a":"\\ud800"}', 'half of a surrogate pair, at offset 6'],
      ['{"a":"\\udc00\\ud800"}', 'half of a surrogate pair'],
      ['{"a":"\\udc00\\udc00"}', 'half of a surrogate pair'],
      ['{"a":"\\ud83dx"}', 'half of a surrogate pair'],
      ['{"a":"\\ud83d\\u0041"}', 'half of a surrogate pair'],
      ['{"\\uDFFF":1}', 'half of a surrogate pair'],
      ['{"a":1e309}', 'a number is too large, at offset 5'],
      ['{"a":[-1E+400]}', 'a number is too large'],
      [`{"a":${'9'.repeat(310)}}`, 'a number is too large'],
      ['{"a":NaN}', 'a value is due, at offset 5'],
      ['{"a":-Infinity}', 'a digit is due, at offset 6'],
      ['\ufeff{"a":1}', 'a byte order mark'],
      ['[{"a":1}]', 'it is not an object'],
      ['"a"', 'it is not an object'],
      ['', 'it is not an object'],
      ['{"a":1} x', 'something follows the object, at offset 8'],
      ['{"a":1}\0', 'something follows the object, at offset 7'],
      ['{"a":01}', 'a comma or an end is due, at offset 6'],
      ['{"a":1,}', 'a key is due, at offset 7'],
      ['{"a":[1}', 'a comma or an end is due, at offset 7'],
      ['{"a":"x\ny"}', 'a control character that is not escaped, at offset 7'],
      ['{"a\n":1}', 'a control character that is not escaped'],
      ['{"a":"\\x41"}', 'an escape is not one of JSON, at offset 6'],
      ['{"a":"\\u12G4"}', 'fewer than four hexadecimal digits'],
      ['{"a":"x', 'a string is not closed'],
      ['{"a":', 'it ends where a value is due, at offset 5'],
    ];
    for (const [text, fault] of faults) expect(faultOf(text)).toContain(fault);
    for (const text of ['{"a":"\\ud83d\\ude00"}', '{"a":1.7976931348623157e308}', '{"a":1e-999}']) {
      expect(faultOf(text)).toBe('accepted');
    }
  });

  test('refuses bytes that are not UTF-8, and still reads the next body', () => {
    for (const tail of [
      [0xff],
      [0xc0, 0x80],
      [0xed, 0xa0, 0x80],
      [0xf0, 0x9f],
      [0xf4, 0x90, 0x80],
    ]) {
      const bytes = new Uint8Array([...encoder.encode('{"a":"'), ...tail, 0x22, 0x7d]);
      expect(() => parseStrict(bytes, NONE)).toThrow(InvalidJson);
      expect(read('{"a":"é"}').value).toEqual({ a: 'é' });
    }
  });

  test('refuses a top-level key that policy could miss by its case', () => {
    const names = new Set(['model', 'max_tokens', 'tools', 'stream_options']);
    const variants = [
      'Model',
      'MODEL',
      'toolſ',
      'max_to\u212Aens',
      'ｍｏｄｅｌ',
      'mo\u200bdel',
      'Stream_Options',
    ];
    for (const variant of variants) {
      for (const spelling of [
        variant,
        `\\u${variant.charCodeAt(0).toString(16).padStart(4, '0')}${variant.slice(1)}`,
      ]) {
        expect(faultOf(`{"model":"a","${spelling}":1}`, names)).toContain('could be read as');
        expect(faultOf(`{"in":{"${spelling}":1}}`, names)).toBe('accepted');
      }
    }
    for (const other of ['models', 'modèl', 'mode1', 'max-tokens', 'mödel', '模型']) {
      expect(faultOf(`{"model":"a","${other}":1}`, names)).toBe('accepted');
    }
  });

  test('refuses every key that differs from a name only in the case of its letters', () => {
    const names = new Set(['stream_options', 'maxTokens']);
    fc.assert(
      fc.property(fc.constantFrom(...names), fc.nat(), (name, mask) => {
        const letters = [...name].map((c, at) => ((mask >> (at % 14)) & 1 ? c.toUpperCase() : c));
        const variant = letters.join('');
        const fault = faultOf(`{"${variant}":1}`, names);
        if (names.has(variant)) expect(fault).toBe('accepted');
        else expect(fault).toContain('could be read as');
      }),
    );
  });

  test('keeps __proto__ as a property of its own', () => {
    const { value } = read('{"__proto__":{"admin":true},"a":{"__proto__":null}}');
    expect(Object.hasOwn(value, '__proto__')).toBeTrue();
    expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
    expect(({} as JsonObject).admin).toBeUndefined();
    expect(faultOf('{"__proto__":1,"__pr\\u006fto__":2}')).toContain('repeats');
  });

  test('refuses depth beyond the limit without using the stack', () => {
    const nest = (depth: number) => `${'{"a":'.repeat(depth - 1)}{}${'}'.repeat(depth - 1)}`;
    expect(faultOf(nest(128))).toBe('accepted');
    expect(faultOf(nest(129))).toContain('more than 128 deep');
    for (const open of ['[', '{"a":', '[{"a":', ' [ ']) {
      expect(faultOf(`{"a":${open.repeat(1_000_000)}`)).toContain('more than 128 deep');
    }
  });

  test('counts members of objects and elements of arrays against their limit', () => {
    const limits = { maxDepth: 4, maxMembers: 5 };
    const parse = (text: string) => parseStrict(encoder.encode(text), NONE, limits);
    expect(parse('{"a":[1,2,{"b":3}]}').value).toEqual({ a: [1, 2, { b: 3 }] });
    expect(() => parse('{"a":[1,2,{"b":3}],"c":1}')).toThrow('more than 5 members');
    expect(() => parse('{"a":[1,2,3,4,5]}')).toThrow('more than 5 members');
  });
});

/** Whether every parent that the path names is an object, null or missing. */
const hasRoom = (value: Json | undefined, path: readonly string[]): boolean => {
  if (path.length === 0 || value === undefined || value === null) return true;
  if (typeof value !== 'object' || Array.isArray(value)) return false;
  const [name, ...rest] = path;
  return hasRoom(Object.hasOwn(value, name!) ? value[name!] : undefined, rest);
};

describe('setMember() and splice()', () => {
  test('change the member and not one byte besides', () => {
    fc.assert(
      fc.property(
        object,
        fc.array(key, { minLength: 1, maxLength: 3 }),
        json,
        picks,
        (...given) => {
          const [value, path, put, pick] = given;
          if (!hasRoom(value, path)) return;
          const body = read(spell(value, pick));
          const edit = setMember(body, path, put);
          const after = parseStrict(splice(body.text, [edit]), NONE);
          let got: Json = after.value;
          for (const name of path) got = (got as JsonObject)[name]!;
          expect(JSON.stringify(got)).toBe(JSON.stringify(JSON.parse(JSON.stringify(put))));
          for (const [name, span] of body.members) {
            if (name === path[0]) continue;
            const now = after.members.get(name)!;
            expect(after.text.slice(now.start, now.end)).toBe(
              body.text.slice(span.start, span.end),
            );
          }
          const added = body.members.has(path[0]!) ? 0 : 1;
          expect(after.members.size).toBe(body.members.size + added);
        },
      ),
      { numRuns: 500 },
    );
  });

  test('leave big numbers, odd numbers and odd whitespace as they are', () => {
    const text =
      '{ "seed" :12345678901234567890,"t":1.0 ,\n"m\\u006fdel":"\\u0061","s":{ "x":1E2 } }';
    const cases: [readonly string[], Json, string][] = [
      [['t'], 2, text.replace('1.0 ', '2 ')],
      [['model'], 'b', text.replace('"\\u0061"', '"b"')],
      [['s', 'x'], null, text.replace('1E2', 'null')],
      [['s', 'y'], [1], text.replace('{ "x"', '{"y":[1], "x"')],
      [['n', 'o'], true, text.replace('{ "seed"', '{"n":{"o":true}, "seed"')],
    ];
    for (const [path, value, expected] of cases) expect(edited(text, path, value)).toBe(expected);
  });

  test('create parents that are missing or null and refuse others', () => {
    const path = ['stream_options', 'include_usage'];
    expect(edited('{}', path, true)).toBe('{"stream_options":{"include_usage":true}}');
    expect(edited(' { \n} ', ['a'], 1)).toBe(' {"a":1} ');
    expect(edited('{"stream_options":null}', path, true)).toBe(
      '{"stream_options":{"include_usage":true}}',
    );
    expect(edited('{"stream_options": {} }', path, true)).toBe(
      '{"stream_options": {"include_usage":true} }',
    );
    for (const other of ['1', '"x"', '[]', 'false']) {
      expect(() => edited(`{"stream_options":${other}}`, path, true)).toThrow(InvalidJson);
    }
  });

  test('apply several edits in one go and refuse those that overlap', () => {
    const body = read('{"a":1,"b":{"c":2}}');
    const edits = [
      setMember(body, ['d'], 4),
      setMember(body, ['b', 'c'], 3),
      setMember(body, ['e'], 5),
    ];
    expect(new TextDecoder().decode(splice(body.text, edits))).toBe(
      '{"d":4,"e":5,"a":1,"b":{"c":3}}',
    );
    const overlapping = [setMember(body, ['b'], 1), setMember(body, ['b', 'c'], 3)];
    expect(() => splice(body.text, overlapping)).toThrow(RangeError);
    const empty = read('{}');
    const both = [setMember(empty, ['a'], 1), setMember(empty, ['b'], 2)];
    expect(() => splice(empty.text, both)).toThrow(RangeError);
    expect(() => splice('ab', [{ start: 1, end: 3, text: '' }])).toThrow(RangeError);
  });
});

describe('the numbers of a text', () => {
  const digits = fc.stringMatching(/^(0|[1-9][0-9]{0,25})$/);
  const fraction = fc.stringMatching(/^(\.[0-9]{1,25})?$/);
  const power = fc.stringMatching(/^([eE][+-]?[0-9]{1,3})?$/);
  const number = fc.tuple(fc.constantFrom('', '-'), digits, fraction, power).map((p) => p.join(''));

  /** A number as a whole one and the power of ten that it is multiplied by. */
  const exactOf = (text: string): readonly [bigint, number] => {
    const [mantissa = '', exponent = '0'] = text.toLowerCase().split('e');
    const [whole = '', part = ''] = mantissa.split('.');
    return [BigInt(whole + part), Number(exponent) - part.length];
  };
  const areSame = ([a, x]: readonly [bigint, number], [b, y]: readonly [bigint, number]) =>
    a === 0n || b === 0n
      ? a === b
      : a * 10n ** BigInt(Math.max(x - y, 0)) === b * 10n ** BigInt(Math.max(y - x, 0));

  test('are held as they are written exactly if they come back the same', () => {
    fc.assert(
      fc.property(number, fc.string(), (text, other) => {
        const read = Number(text);
        const isSame = Number.isFinite(read) && areSame(exactOf(text), exactOf(String(read)));
        expect(isFaithful(`{"1e999":[${JSON.stringify(other)},${text}]}`)).toBe(isSame);
      }),
      { numRuns: 5_000 },
    );
  });

  test.each([
    ['12345678901234567890', false],
    ['12345678901234567000', true],
    ['9007199254740993', false],
    ['0.1', true],
    ['1e400', false],
    ['1e-400', false],
    ['0e400', true],
    ['-0.0', true],
  ])('%s: %p', (text, expected) => {
    expect(isFaithful(text)).toBe(expected);
  });

  const LENGTH = 4_000_000;
  test.each(['x', '"', '\\', '1', '1"', ','])(
    'are all found behind a long string of %j',
    (unit) => {
      const string = JSON.stringify(unit.repeat(LENGTH / unit.length));
      expect(isFaithful(`{"s":${string},"n":0.1}`)).toBe(true);
      expect(isFaithful(`{"s":${string},"n":9007199254740993}`)).toBe(false);
    },
  );

  test('are held or not in linear time, however many digits they have', () => {
    const zeros = '0'.repeat(LENGTH);
    for (const text of [`1.${zeros}`, `0.${zeros}`, `-${zeros}1`, `1${zeros}e-${LENGTH}`]) {
      expect(isFaithful(text)).toBe(true);
    }
    for (const text of [`1.${zeros}1`, `0.${zeros}1`, `1${zeros}1e-${LENGTH}`]) {
      expect(isFaithful(text)).toBe(false);
    }
  });
});
