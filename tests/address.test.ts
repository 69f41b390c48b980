/** Addresses: the grids of what is public, and ranges against an independent count of bits. */
import { describe, expect, test } from 'bun:test';
import fc from 'fast-check';
import {
  canonicalAddress,
  formatCidr,
  inCidrs,
  isAllowedHost,
  isPublicAddress,
  literalAddress,
  parseAllowList,
  parseCidr,
} from '../schema/address.ts';

const toDotted = (value: bigint): string =>
  [24n, 16n, 8n, 0n].map((shift) => (value >> shift) & 255n).join('.');

const toGroups = (value: bigint): string =>
  Array.from({ length: 8 }, (_, at) =>
    ((value >> BigInt(112 - at * 16)) & 0xffffn).toString(16),
  ).join(':');

const fromDotted = (text: string): bigint =>
  text.split('.').reduce((value, byte) => (value << 8n) | BigInt(byte), 0n);

const fromGroups = (groups: string): bigint =>
  groups.split(':').reduce((value, group) => (value << 16n) | BigInt(`0x${group}`), 0n);

/** First, last, middle, and both neighbours of the middle. */
function samples(network: bigint, prefixBits: number, bits: number): bigint[] {
  const size = 1n << BigInt(bits - prefixBits);
  const middle = network + size / 2n;
  return [...new Set([network, network + size - 1n, middle, network + size / 3n])];
}

const SPECIAL_V4 = {
  '0.0.0.0/8': 'this network',
  '10.0.0.0/8': 'private',
  '100.64.0.0/10': 'CGNAT',
  '127.0.0.0/8': 'loopback',
  '168.63.129.16/32': 'metadata',
  '169.254.0.0/16': 'link-local',
  '172.16.0.0/12': 'private',
  '192.0.0.0/24': 'protocol assignments',
  '192.0.2.0/24': 'documentation',
  '192.88.99.0/24': '6to4 relays',
  '192.168.0.0/16': 'private',
  '198.18.0.0/15': 'benchmarking',
  '198.51.100.0/24': 'documentation',
  '203.0.113.0/24': 'documentation',
  '224.0.0.0/4': 'multicast',
  '240.0.0.0/4': 'reserved',
};

const SPECIAL_V6: [string, number, string][] = [
  ['0:0:0:0:0:0:0:0', 8, 'unspecified, loopback, v4-compatible, v4-mapped'],
  ['64:ff9b:0:0:0:0:0:0', 96, 'NAT64'],
  ['64:ff9b:1:0:0:0:0:0', 48, 'local NAT64'],
  ['100:0:0:0:0:0:0:0', 64, 'discard'],
  ['2001:0:0:0:0:0:0:0', 32, 'Teredo'],
  ['2001:0:0:0:0:0:0:0', 23, 'protocol assignments'],
  ['2001:2:0:0:0:0:0:0', 48, 'benchmarking'],
  ['2001:20:0:0:0:0:0:0', 28, 'ORCHIDv2'],
  ['2001:db8:0:0:0:0:0:0', 32, 'documentation'],
  ['2002:0:0:0:0:0:0:0', 16, '6to4'],
  ['3fff:0:0:0:0:0:0:0', 20, 'documentation'],
  ['4000:0:0:0:0:0:0:0', 2, 'not assigned'],
  ['5f00:0:0:0:0:0:0:0', 16, 'segment routing'],
  ['8000:0:0:0:0:0:0:0', 1, 'not assigned, local, multicast'],
  ['fc00:0:0:0:0:0:0:0', 7, 'unique local'],
  ['fe80:0:0:0:0:0:0:0', 10, 'link-local'],
  ['fec0:0:0:0:0:0:0:0', 10, 'site-local'],
  ['ff00:0:0:0:0:0:0:0', 8, 'multicast'],
];

describe('isPublicAddress()', () => {
  test.each(Object.entries(SPECIAL_V4))('refuses %s, %s, in every notation', (range) => {
    const [network = '', bits] = range.split('/');
    for (const value of samples(fromDotted(network), Number(bits), 32)) {
      const dotted = toDotted(value);
      const bytes = dotted.split('.').map(Number);
      const inside = (prefix: string, tail = '') => `${prefix}${toGroups(value).slice(12)}${tail}`;
      const hex = toGroups(value).split(':').slice(6).join(':');
      for (const text of [
        dotted,
        String(value),
        `0x${value.toString(16)}`,
        `0${value.toString(8)}`,
        bytes.map((byte) => `0x${byte.toString(16)}`).join('.'),
        bytes.map((byte) => `0${byte.toString(8)}`).join('.'),
        bytes.map((byte) => String(byte).padStart(3, '0')).join('.'),
        `${dotted}.`,
        ` ${dotted}`,
        `::ffff:${dotted}`,
        `::ffff:${hex}`,
        `::ffff:0:${hex}`,
        `::${dotted}`,
        `64:ff9b::${dotted}`,
        `64:ff9b:1::${dotted}`,
        `2002:${hex}::1`,
        `2001::${hex}`,
        inside('::'),
      ]) {
        expect([text, isPublicAddress(text)]).toEqual([text, false]);
      }
    }
  });

  test.each(SPECIAL_V6)('refuses %s/%d, %s, in every notation', (network, prefixBits) => {
    for (const value of samples(fromGroups(network), prefixBits, 128)) {
      const groups = toGroups(value);
      const wide = groups.split(':').map((group) => group.padStart(4, '0'));
      for (const text of [groups, groups.toUpperCase(), wide.join(':'), `${groups}%eth0`]) {
        expect([text, isPublicAddress(text)]).toEqual([text, false]);
      }
    }
  });

  test.each(['1.1.1.1', '8.8.8.8', '93.184.216.34', '9.255.255.255', '11.0.0.0', '100.63.255.255'])(
    'lets %s through',
    (address) => expect(isPublicAddress(address)).toBe(true),
  );

  test.each(['100.128.0.0', '172.15.255.255', '172.32.0.0', '223.255.255.255', '2606:4700::1111'])(
    'lets %s through',
    (address) => expect(isPublicAddress(address)).toBe(true),
  );

  test.each(['2001:4860:4860::8888', '2a00:1450:4001::1', '2400:cb00::'])(
    'lets %s through, though not with a zone',
    (address) => {
      expect(isPublicAddress(address)).toBe(true);
      expect(isPublicAddress(`${address}%eth0`)).toBe(false);
    },
  );

  test('agrees with the special ranges on any IPv4 address', () => {
    const ranges = Object.keys(SPECIAL_V4).map((range) => {
      const [network = '', bits] = range.split('/');
      return { network: fromDotted(network), shift: BigInt(32 - Number(bits)) };
    });
    // Anycast services of the registries that are routed, and yet no service of anybody's.
    const anycast = /^(192\.31\.196|192\.52\.193|192\.175\.48)\./;
    fc.assert(
      fc.property(fc.bigInt(0n, 2n ** 32n - 1n), (value) => {
        const isSpecial = ranges.some(({ network, shift }) => network >> shift === value >> shift);
        const text = toDotted(value);
        expect(isPublicAddress(text)).toBe(!isSpecial && !anycast.test(text));
      }),
      { numRuns: 2000 },
    );
  });

  test('is false for any other text', () => {
    fc.assert(fc.property(fc.string(), (text) => expect(isPublicAddress(text)).toBe(false)));
  });
});

const v4 = fc.bigInt(0n, 2n ** 32n - 1n);
const v6 = fc.bigInt(1n << 64n, 2n ** 128n - 1n);

/** An address that shares so many leading bits with another, so that borders are met. */
const near = (value: bigint, other: bigint, shared: number, bits: number): bigint => {
  const low = (1n << BigInt(bits - shared)) - 1n;
  return (value & ~low) | (other & low);
};

describe('ranges', () => {
  test('hold exactly the IPv4 addresses that share the prefix', () => {
    fc.assert(
      fc.property(v4, v4, fc.nat(32), fc.nat(32), (network, other, prefixBits, shared) => {
        const address = near(network, other, shared, 32);
        const shift = BigInt(32 - prefixBits);
        const cidr = parseCidr(`${toDotted(network)}/${prefixBits}`);
        const isInside = network >> shift === address >> shift;
        expect(inCidrs(toDotted(address), [cidr])).toBe(isInside);
        expect(inCidrs(`::ffff:${toDotted(address)}`, [cidr])).toBe(isInside);
        expect(inCidrs(`[::ffff:${toDotted(address)}]`, [cidr])).toBe(isInside);
        expect(parseCidr(`::ffff:${toDotted(network)}/${96 + prefixBits}`)).toEqual(cidr);
      }),
      { numRuns: 2000 },
    );
  });

  test('hold exactly the IPv6 addresses that share the prefix', () => {
    fc.assert(
      fc.property(v6, v6, fc.nat(128), fc.nat(128), (network, other, prefixBits, shared) => {
        const address = near(network, other, shared, 128);
        fc.pre(address >> 32n !== 0xffffn);
        const shift = BigInt(128 - prefixBits);
        const cidr = parseCidr(`${toGroups(network)}/${prefixBits}`);
        expect(inCidrs(toGroups(address), [cidr])).toBe(network >> shift === address >> shift);
      }),
      { numRuns: 2000 },
    );
  });

  test('of one family hold nothing of the other', () => {
    expect(inCidrs('2001:db8::1', [parseCidr('0.0.0.0/0')])).toBe(false);
    expect(inCidrs('192.0.2.1', [parseCidr('::/0')])).toBe(false);
  });

  test('are printed masked, and read back as they were', () => {
    expect(formatCidr(parseCidr('10.1.2.3/8'))).toBe('10.0.0.0/8');
    expect(formatCidr(parseCidr('2001:DB8:0::1/32'))).toBe('2001:db8::/32');
    expect(formatCidr(parseCidr('::ffff:10.0.0.1/104'))).toBe('10.0.0.0/8');
    expect(formatCidr(parseCidr('192.0.2.1'))).toBe('192.0.2.1/32');
    expect(formatCidr(parseCidr('fe80::1%eth0'))).toBe('fe80::1/128');
    fc.assert(
      fc.property(v4, fc.nat(32), (network, prefixBits) => {
        const cidr = parseCidr(`${toDotted(network)}/${prefixBits}`);
        expect(parseCidr(formatCidr(cidr))).toEqual(cidr);
      }),
    );
  });

  const WRONG = ['', '10/8', '10.0.0.0/33', '::/129', '10.0.0.0/', '10.0.0.0/+8', '10.0.0.0/08'];
  const MORE = ['0x7f.0.0.1/8', '010.0.0.0/8', '10.0.0.0/8/8', 'a/8', '10.0.0.0/-1', '1.2.3.4 /8'];
  test.each([...WRONG, ...MORE])('refuse %j', (text) => {
    expect(() => parseCidr(text)).toThrow(RangeError);
  });
});

describe('canonicalAddress()', () => {
  test.each([
    ['::FFFF:192.0.2.1', '192.0.2.1'],
    ['::ffff:c000:201', '192.0.2.1'],
    ['[2001:DB8:0:0:0:0:0:1]', '2001:db8::1'],
    ['fe80::1%eth0', 'fe80::1'],
    ['192.0.2.1', '192.0.2.1'],
    ['192.0.2.01', undefined],
    ['3221225985', undefined],
    ['example.com', undefined],
    ['', undefined],
  ])('%s is %s', (text, canonical) => expect(canonicalAddress(text)).toBe(canonical));
});

describe('the allow list', () => {
  const allow = parseAllowList(
    ' LLM.lan, bücher.example:8443,localhost:11434, 10.0.0.0/8 ,192.0.2.7,[::1]:8080,,fd00::/8',
  );
  test.each([
    ['http://llm.lan/', true],
    ['https://LLM.LAN:99/', true],
    ['http://sub.llm.lan/', false],
    ['http://llm.lan.evil.test/', false],
    ['https://xn--bcher-kva.example:8443/', true],
    ['https://xn--bcher-kva.example/', false],
    ['http://localhost:11434/', true],
    ['http://localhost/', false],
    ['http://10.1.2.3/', true],
    ['http://0xa010203/', true],
    ['http://[::ffff:10.1.2.3]/', true],
    ['http://11.0.0.1/', false],
    ['http://192.0.2.7/', true],
    ['http://192.0.2.8/', false],
    ['http://[::1]:8080/', true],
    ['http://[::1]:8081/', false],
    ['http://[fd00::1]/', true],
    ['http://10.0.0.1.evil.test/', false],
  ])('%s: %s', (url, isAllowed) => expect(isAllowedHost(new URL(url), allow)).toBe(isAllowed));

  test('a default port is the same written or not', () => {
    const list = parseAllowList('a.test:443,b.test:80');
    expect(isAllowedHost(new URL('https://a.test/'), list)).toBe(true);
    expect(isAllowedHost(new URL('http://a.test/'), list)).toBe(false);
    expect(isAllowedHost(new URL('http://b.test/'), list)).toBe(true);
  });

  const WRONG = ['*.example.com', 'https://a.test', 'a.test/path', 'user@a.test', 'a b', 'a:b'];
  test.each([...WRONG, 'a.test:99999', 'a.test:', '10.0.0.0/40', 'a?b', 'a\\b', '[::1'])(
    'refuses %j',
    (text) => expect(() => parseAllowList(text)).toThrow(RangeError),
  );

  test('has a limit', () => {
    expect(() => parseAllowList(Array(1001).fill('a.test').join())).toThrow(RangeError);
  });
});

test('literalAddress() knows addresses from names', () => {
  expect(literalAddress(new URL('https://0x7f.1/'))).toBe('127.0.0.1');
  expect(literalAddress(new URL('https://[::1]/'))).toBe('::1');
  expect(literalAddress(new URL('https://example.com/'))).toBeUndefined();
});
