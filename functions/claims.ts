/** What Rungate claims in public: each promise with what backs it, and everything that it keeps. */

/** A promise that the code keeps, with the module that keeps it and the test that proves it. */
export interface Claim {
  readonly promise: string;
  /** A path in the repository. */
  readonly module: string;
  /** A path in the repository. */
  readonly testFile: string;
  /** The titles that lead to the test, joined by ` › `. */
  readonly test: string;
}

/** Claims of one kind. */
export interface Topic {
  readonly title: string;
  readonly claims: readonly Claim[];
}

/** Something that is stored. */
export interface Kept {
  readonly what: string;
  readonly detail: string;
  /** Ends the sentence `Kept …`. */
  readonly until: string;
  /** The tables of the database that hold it. */
  readonly tables: readonly string[];
}

const claim = (promise: string, module: string, testFile: string, test: string): Claim => ({
  ...{ promise, module, testFile, test },
});

/** Every security promise that is kept today, by topic. */
export const TOPICS: readonly Topic[] = [
  {
    title: 'Tokens',
    claims: [
      claim(
        'A mistyped token is recognised by its checksum and refused without a look into the database.',
        'functions/proxy/authenticate.ts',
        'tests/pages.test.ts',
        'tokens › that are mistyped are refused while the database is away; well-formed ones need it',
      ),
      claim(
        'Any single wrong character of a token is found.',
        'schema/token.ts',
        'tests/token.test.ts',
        'every change of a single character is refused',
      ),
      claim(
        'The 30 random characters of a token are evenly spread.',
        'schema/token.ts',
        'tests/token.test.ts',
        'the random characters are evenly spread (chi-square, 61 degrees of freedom)',
      ),
      claim(
        'Tokens are stored as SHA-256 only: no file, log line or answer holds one.',
        'db/tokens.ts',
        'tests/canary.test.ts',
        'neither the key nor a token nor a prompt is written or told › when calls succeed, streamed and not',
      ),
      claim(
        'A token that is revoked, replaced or expired fails from the next request on.',
        'functions/proxy/authenticate.ts',
        'tests/hostile.test.ts',
        'tokens › of admins, revoked and expired ones are refused',
      ),
      claim(
        'Of two different tokens in one request neither is chosen: it is refused.',
        'functions/proxy/authenticate.ts',
        'tests/hostile.test.ts',
        'tokens › two different ones are refused rather than chosen from',
      ),
    ],
  },
  {
    title: 'Provider keys',
    claims: [
      claim(
        'Keys are sealed with AES-256-GCM: a single altered bit is noticed, and nothing opens.',
        'db/seal.ts',
        'tests/seal.test.ts',
        'seal and open › a single flipped bit anywhere in a sealed secret is refused',
      ),
      claim(
        'A sealed key copied to another row, provider or host does not open.',
        'db/seal.ts',
        'tests/seal.test.ts',
        'the place of a secret › a copy in another table, column, row, for another provider or host does not open',
      ),
      claim(
        'A sealed key copied to another org does not open.',
        'db/seal.ts',
        'tests/seal.test.ts',
        'the place of a secret › a copy in another org opens neither with the old org’s key nor with its own',
      ),
      claim(
        'Sealing commits to its key: one ciphertext can never open under two.',
        'db/seal.ts',
        'tests/seal.test.ts',
        'key commitment › a ciphertext made to be authentic under two keys opens under its own key only',
      ),
      claim(
        'A key stops sealing long before its nonces could repeat.',
        'db/seal.ts',
        'tests/seal.test.ts',
        'an org key stops sealing at its limit, and at a count that makes no sense',
      ),
      claim(
        'Master keys are rotated by one command, after which the old one is needed no more.',
        'db/system.ts',
        'tests/cli.test.ts',
        'rotate moves every org once, and then the old key is needed no more',
      ),
      claim(
        'Development makes a master key of its own in a file with mode 600; it is never a constant.',
        'functions/config.ts',
        'tests/config.test.ts',
        'developmentMasterKeys() › are different in every deployment',
      ),
      claim(
        'An upstream that repeats its credential does not get it through to the agent.',
        'functions/proxy/headers.ts',
        'tests/canary.test.ts',
        'neither the key nor a token nor a prompt is written or told › when the upstream repeats its credential in errors and headers',
      ),
    ],
  },
  {
    title: 'Orgs and agents',
    claims: [
      claim(
        'Once its token has told the org, a request reaches rows only by SQL that names that org.',
        'db/org.ts',
        'tests/database.test.ts',
        'the door to an org › is closed to %s',
      ),
      claim(
        'What another agent owns answers exactly like what does not exist.',
        'functions/api.ts',
        'tests/hostile.test.ts',
        'what others own › answers like what does not exist',
      ),
      claim(
        'No header of a caller chooses the upstream’s route, host or account.',
        'functions/proxy/headers.ts',
        'tests/hostile.test.ts',
        "hops › what would have an upstream serve another route, host or account isn't passed on",
      ),
      claim(
        'Names from the language itself, such as __proto__, are names like any other.',
        'schema/rules/identity.ts',
        'tests/hostile.test.ts',
        'names › of the language itself are run ids like any other',
      ),
      claim(
        'Every change made from the command line is on the audit trail, without a token.',
        'db/audit.ts',
        'tests/cli.test.ts',
        'every change is on the audit trail, without a token',
      ),
    ],
  },
  {
    title: 'Money',
    claims: [
      claim(
        'A budget is never passed, however many calls come at once over however many processes.',
        'functions/proxy/reserve.ts',
        'tests/money.test.ts',
        '%s on a run that pays for forty › lets exactly those through, and never passes the ceiling',
      ),
      claim(
        'What is spent and held is the sum of the trail’s steps, in every scope and at any time.',
        'db/steps.ts',
        'tests/money.test.ts',
        'holds and settlements, however they interleave › keep in every scope spent the sum of the settled and held the sum of the live',
      ),
      claim(
        'A model without a known price is refused before the call leaves.',
        'functions/proxy/decide.ts',
        'tests/money.test.ts',
        'the price of a model › that nobody knows refuses the call before it leaves, until the org sets one',
      ),
      claim(
        'A caller that leaves before the end pays for what was made.',
        'functions/proxy/settle.ts',
        'tests/hostile.test.ts',
        'money › leaving before the end does not make thinking free',
      ),
      claim(
        'A process that is killed leaves no money held: its calls are settled within their lease.',
        'functions/proxy/flight.ts',
        'tests/faults.test.ts',
        'a server killed under load leaves holds that are settled within their lease',
      ),
      claim(
        'A database that takes no more writes lets no call out.',
        'functions/proxy/reserve.ts',
        'tests/faults.test.ts',
        'a database › that takes no more steps refuses every call, and serves again when it does',
      ),
    ],
  },
  {
    title: 'What leaves for another host',
    claims: [
      claim(
        'Private, loopback, link-local and other special addresses are refused, however written.',
        'functions/egress.ts',
        'tests/egress.test.ts',
        'which URLs are refused › %s in every notation',
      ),
      claim(
        'The address that was checked is the one that is dialled, whatever the name says later.',
        'functions/egress.ts',
        'tests/egress.test.ts',
        'which addresses of a name are dialled › the checked one, whatever the name resolves to a moment later',
      ),
      claim(
        'Redirects are not followed.',
        'functions/egress.ts',
        'tests/egress.test.ts',
        'hands a redirect back and does not follow it',
      ),
      claim(
        'A certificate for another name is refused.',
        'functions/egress.ts',
        'tests/egress.test.ts',
        'who is at the other end › a certificate for another name is refused, also while a connection is kept',
      ),
      claim(
        'What the operator allows beyond that is a host and its port, and no other port.',
        'functions/egress.ts',
        'tests/egress.test.ts',
        'what the operator allows › a host and port is that port alone',
      ),
    ],
  },
  {
    title: 'The edge',
    claims: [
      claim(
        'Every answer carries the headers of the edge: HSTS, a strict CSP, no framing, no sniffing.',
        'functions/edge.ts',
        'tests/pages.test.ts',
        'every answer › carries the headers of the edge',
      ),
      claim(
        'Plain http is answered on the loopback only; elsewhere it is redirected or refused.',
        'functions/edge.ts',
        'tests/pages.test.ts',
        'plain http › from any address but the loopback is refused, or redirected where it is safe',
      ),
      claim(
        'Only a configured proxy can say that a request came over TLS.',
        'functions/edge.ts',
        'tests/pages.test.ts',
        'plain http › is not made TLS by a header of a stranger',
      ),
      claim(
        'The client’s address cannot be chosen by the client.',
        'functions/config.ts',
        'tests/config.test.ts',
        'clientAddress() › cannot be chosen by a client that is no proxy',
      ),
      claim(
        'Bodies have a limit, whether they tell their length or not.',
        'functions/proxy/body.ts',
        'tests/hostile.test.ts',
        'encodings › a body of too many bytes is refused, its length told or not',
      ),
      claim(
        'Compressed bodies are limited by what they decode to.',
        'functions/proxy/body.ts',
        'tests/hostile.test.ts',
        'encodings › bombs are refused by what they decode to',
      ),
      claim(
        'A route that is not served as it stands is refused: no second reading of a path.',
        'functions/proxy/call.ts',
        'tests/hostile.test.ts',
        'routes › that are not served as they stand are refused in the right dialect',
      ),
      claim(
        'The file security.txt is in the form of RFC 9116 and expires within a year.',
        'functions/pages.ts',
        'tests/pages.test.ts',
        'security.txt › is valid by RFC 9116, at any time and for any contact',
      ),
    ],
  },
  {
    title: 'Logs and dependencies',
    claims: [
      claim(
        'The log never holds a token, a key or a secret, wherever it is and in what it is wrapped.',
        'functions/log.ts',
        'tests/config.test.ts',
        'the log › never holds a secret, wherever it is and in what it is wrapped',
      ),
      claim(
        'A crash in the middle of a call writes neither a key nor a prompt.',
        'functions/log.ts',
        'tests/canary.test.ts',
        'neither the key nor a token nor a prompt is written or told › when a process crashes in the middle of a call',
      ),
      claim(
        'Web Crypto is touched in one file.',
        'db/seal.ts',
        'tests/tidy.test.ts',
        'only db/seal.ts touches crypto.subtle',
      ),
      claim(
        'Every dependency is pinned exactly.',
        'package.json',
        'tests/tidy.test.ts',
        'every dependency is pinned exactly',
      ),
      claim(
        'Every action of the continuous integration is pinned to a commit.',
        '.github/workflows',
        'tests/tidy.test.ts',
        'workflows pin every action to a commit',
      ),
    ],
  },
];

const UNTIL_DELETED = 'until the operator deletes it';

/** Everything that is stored, and for how long. */
export const RECORDS: readonly Kept[] = [
  {
    what: 'Orgs and their members',
    detail: 'The org’s name, and the email address and role of each member.',
    until: UNTIL_DELETED,
    tables: ['orgs', 'users', 'members'],
  },
  {
    what: 'Agents and what governs them',
    detail: 'Names of agents, the versions of their policies, prices of models.',
    until: UNTIL_DELETED,
    tables: ['agents', 'policies', 'policy_versions', 'prices'],
  },
  {
    what: 'Tokens',
    detail:
      'A SHA-256 hash, the last four characters, who made it, and its last use to the hour. The token itself is shown once and not kept.',
    until: 'until the operator deletes it, also when revoked or expired',
    tables: ['tokens'],
  },
  {
    what: 'Provider keys',
    detail:
      'Sealed with AES-256-GCM under a key of the org, beside their last four characters. They are opened in memory only, to forward calls.',
    until: UNTIL_DELETED,
    tables: ['provider_keys', 'org_keys'],
  },
  {
    what: 'Runs, and a step for each call',
    detail:
      'The name that the caller gave the run; route, model, time, latency, outcome, token counts and cost; and the SHA-256 digests of the two bodies, never the bodies. A refusal also keeps the values it was decided on, such as the model that was asked for.',
    until: UNTIL_DELETED,
    tables: ['runs', 'steps', 'spend'],
  },
  {
    what: 'Responses that a provider keeps',
    detail:
      'The ids of a response and of its items, and the agent that made it, so that no other can read it through Rungate.',
    until: UNTIL_DELETED,
    tables: ['responses'],
  },
  {
    what: 'Audit trail',
    detail: 'Who changed what and when, without secrets.',
    until: UNTIL_DELETED,
    tables: ['audit_entries'],
  },
];
