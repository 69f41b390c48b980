/** Identifiers: every noun's id carries its own prefix and its own TypeScript type. */

const PREFIXES = {
  org: 'org_',
  user: 'usr_',
  member: 'mem_',
  agent: 'agt_',
  token: 'tok_',
  policy: 'pol_',
  policyVersion: 'polv_',
  providerKey: 'key_',
  run: 'run_',
  step: 'stp_',
  gate: 'gate_',
  parked: 'prk_',
  link: 'lnk_',
  event: 'evt_',
  webhook: 'whk_',
  delivery: 'dlv_',
  invitation: 'inv_',
  session: 'ses_',
  alertRule: 'alr_',
  audit: 'aud_',
  request: 'req_',
} as const;

/** The nouns that have identifiers. */
export type Noun = keyof typeof PREFIXES;

declare const noun: unique symbol;

/** The id of one kind of noun; ids of two kinds are not assignable to each other. */
export type Id<N extends Noun> = string & { readonly [noun]: N };

export type OrgId = Id<'org'>;
export type UserId = Id<'user'>;
export type AgentId = Id<'agent'>;
export type TokenId = Id<'token'>;
export type PolicyId = Id<'policy'>;
export type PolicyVersionId = Id<'policyVersion'>;
export type ProviderKeyId = Id<'providerKey'>;
export type RunId = Id<'run'>;
export type StepId = Id<'step'>;
export type MemberId = Id<'member'>;
export type GateId = Id<'gate'>;
export type ParkedId = Id<'parked'>;
export type EventId = Id<'event'>;
export type WebhookId = Id<'webhook'>;
export type DeliveryId = Id<'delivery'>;
export type InvitationId = Id<'invitation'>;
export type SessionId = Id<'session'>;
export type AlertRuleId = Id<'alertRule'>;

const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz';
/** Two base32 digits for every ten bits: digit by digit, an id would cost twice as much. */
const PAIRS = Array.from({ length: 1024 }, (_, bits) => {
  return ALPHABET.charAt(bits >> 5) + ALPHABET.charAt(bits & 31);
});
/** Random bytes that an id is made of: 80 bits, as in a ULID. */
export const ID_ENTROPY_BYTES = 10;

/**
 * Formats an id that sorts by the time it was made: prefix, 10 base32 digits of milliseconds,
 * 16 base32 digits of entropy (the ULID layout, in lower case).
 *
 * @param millis Unix time in milliseconds.
 * @param entropy At least {@link ID_ENTROPY_BYTES} random bytes from `at` on.
 */
export function formatId<N extends Noun>(
  kind: N,
  millis: number,
  entropy: Uint8Array,
  at = 0,
): Id<N> {
  const high = Math.floor(millis / 2 ** 20);
  const time =
    pair(high / 2 ** 20) + pair(high >> 10) + pair(high) + pair(millis >> 10) + pair(millis);
  return (PREFIXES[kind] + time + base32(entropy, at) + base32(entropy, at + 5)) as Id<N>;
}

/** The least id of a noun made at a moment or later, Unix milliseconds; moments before 1970 are 1970. */
export function leastId<N extends Noun>(kind: N, millis: number): Id<N> {
  return formatId(kind, Math.max(0, millis), LEAST_ENTROPY);
}

const LEAST_ENTROPY = new Uint8Array(ID_ENTROPY_BYTES);

/** Whether a string has the shape of an id of this kind. */
export function isId<N extends Noun>(kind: N, text: string): text is Id<N> {
  const prefix = PREFIXES[kind];
  return text.startsWith(prefix) && /^[0-9a-hjkmnp-tv-z]{26}$/.test(text.slice(prefix.length));
}

/** Eight base32 digits of the five bytes at `at`. */
function base32(bytes: Uint8Array, at: number): string {
  const byte = (offset: number) => bytes[at + offset] ?? 0;
  const high = (byte(0) << 12) | (byte(1) << 4) | (byte(2) >> 4);
  const low = ((byte(2) & 15) << 16) | (byte(3) << 8) | byte(4);
  return pair(high >> 10) + pair(high) + pair(low >> 10) + pair(low);
}

/** The two base32 digits of the last ten bits of a number below 2^53. */
function pair(bits: number): string {
  return PAIRS[bits & 1023] ?? '';
}
