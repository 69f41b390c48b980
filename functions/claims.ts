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
        'An admin token never does more than its member could himself at that moment.',
        'db/tokens.ts',
        'tests/roles.test.ts',
        'an admin token › may do what was granted and its member holds by now, through every change of his role',
      ),
      claim(
        'A token that permits some policies opens and joins no run under another, and permits the same for good.',
        'functions/proxy/run.ts',
        'tests/token-policies.test.ts',
        'a call › opens and joins a named run under what its token permits, and no other',
      ),
      claim(
        'Nobody makes a token that may more than he, or than the token he came with.',
        'schema/rules/membership.ts',
        'tests/roles.test.ts',
        'an admin token › is made with exactly what its maker holds, by role and by the token he came with',
      ),
      claim(
        'A platform token works from its address ranges only, and for at most 366 days.',
        'db/platform.ts',
        'tests/platform.test.ts',
        'a platform token › is good from its ranges only, in any spelling of an address',
      ),
      claim(
        'The operator of the platform has no query that reaches what an org contains.',
        'db/platform.ts',
        'tests/platform.test.ts',
        'the handle of the platform › reads nothing else while each of its methods runs',
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
    title: 'People and the audit trail',
    claims: [
      claim(
        'An org keeps an owner, even when all of them demote each other at the same moment.',
        'db/members.ts',
        'tests/members.test.ts',
        'an owner remains › however many owners demote and remove each other at the same moment',
      ),
      claim(
        'Nobody is made an owner: he accepts the ownership himself, and types the slug of the org.',
        'schema/rules/membership.ts',
        'tests/members.test.ts',
        'changing a role › makes nobody an owner, and says what does',
      ),
      claim(
        'A change of role ends that member’s sessions.',
        'db/members.ts',
        'tests/members.test.ts',
        'changing a role › ends the sessions of that member, and of no other',
      ),
      claim(
        'Sessions, links and invitations are stored as SHA-256 only; a link works once.',
        'db/sessions.ts',
        'tests/sessions.test.ts',
        'a link by mail › works once, however often it is used at the same moment',
      ),
      claim(
        'Asking for a link to sign in tells nobody who is a member.',
        'functions/signin.ts',
        'tests/signin.test.ts',
        'asking for a link › is answered alike for members, strangers and those who asked too often',
      ),
      claim(
        'A form or a request of another site does nothing in the name of who is signed in.',
        'functions/sites.ts',
        'tests/signin.test.ts',
        'a form › of another site signs nobody in or out, accepts nothing, and asks the API nothing',
      ),
      claim(
        'An identity provider is believed for its own org, for verified addresses of agreed domains, and by its signature only.',
        'functions/signin/oidc.ts',
        'tests/oidc.test.ts',
        'a provider that lies › is refused when its token %s',
      ),
      claim(
        'An audit entry is written in the transaction of its change: neither stands without the other.',
        'db/chain.ts',
        'tests/audit.test.ts',
        'an entry › is in the transaction of its change: neither stands without the other',
      ),
      claim(
        'The audit trail has no gap and no fork, however many write at once.',
        'db/chain.ts',
        'tests/audit.test.ts',
        'a clean chain › has no gap and no fork, however many write over several connections',
      ),
      claim(
        'Editing, deleting, reordering, truncating or rewriting the audit trail in the database file is found against a held checkpoint.',
        'schema/audit.ts',
        'tests/audit.test.ts',
        'tampering with the database file is found › %s, at any entry, against a checkpoint that was held',
      ),
      claim(
        'A person can be erased from the audit trail, and it still verifies.',
        'db/audit.ts',
        'tests/audit.test.ts',
        'what may be taken away › erasing a person leaves nothing of him, and a chain that verifies',
      ),
      claim(
        'The steps of a run that has ended are anchored in the audit trail: a step that is edited, removed or put in is found, by an export alone too.',
        'schema/trail.ts',
        'tests/trails.test.ts',
        'the trail of a run › is found changed, whichever single value of whichever step was edited',
      ),
    ],
  },
  {
    title: 'Approvals',
    claims: [
      claim(
        'A tool call that needs approval does not reach the agent before it is given, and then reaches it byte for byte, once.',
        'functions/proxy/gate.ts',
        'tests/gates.test.ts',
        'a gated call in %s, sent %s › is held back, approved, released byte for byte, and charged once',
      ),
      claim(
        'An approval is good for one run of one agent and one request, and for no other.',
        'db/parked.ts',
        'tests/gates.test.ts',
        'a parked answer › answers no other request, run, agent or route',
      ),
      claim(
        'A call of an MCP server that a rule asks about runs at the provider as people approved it for its run, or an approval of it is not forwarded.',
        'functions/proxy/results.ts',
        'tests/mcp-approvals.test.ts',
        'an approval of what nobody has approved › is not sent: %s',
      ),
      claim(
        'What waits for approval is sealed: neither the arguments nor the answer stand in the database in clear.',
        'db/vault.ts',
        'tests/gates.test.ts',
        'a parked answer › is nowhere in the database in clear, and neither are the arguments',
      ),
      claim(
        'Nobody approves a call of his own: neither the agent, nor its tokens, nor who made the token.',
        'db/gates.ts',
        'tests/gates.test.ts',
        'who decides › who caused the call can not',
      ),
      claim(
        'A link that was made for who caused the call can reject it, but not approve it.',
        'db/gates.ts',
        'tests/gates.test.ts',
        'a signed link › %s can reject, but not approve',
      ),
      claim(
        'Where several people have to approve, each of them counts once.',
        'db/gates.ts',
        'tests/gates.test.ts',
        'who decides › several people are several: one who approves twice counts once',
      ),
      claim(
        'A link to decide is signed, works once, ends with its gate, and decides nothing by being read.',
        'functions/links.ts',
        'tests/gates.test.ts',
        'a signed link › decides nothing when altered, forged, of another site, or without a decision',
      ),
      claim(
        'A link to decide is signed as it is delivered and stored nowhere: who reads the database decides nothing with it.',
        'functions/jobs/deliver.ts',
        'tests/gates.test.ts',
        'a signed link › is stored nowhere, so that nobody decides by reading the database',
      ),
      claim(
        'No way of cutting, escaping or repeating a stream gets a denied or gated call past the proxy.',
        'functions/proxy/screen.ts',
        'tests/screen.test.ts',
        'a stream, however it is written and cut › does not give out a byte of a call that is denied or asked about',
      ),
      claim(
        'Kept bodies are sealed, open in their own place only, and reading them is recorded.',
        'db/captures.ts',
        'tests/capture.test.ts',
        'sealed bodies stand nowhere in the files in clear, open in their own place only, and reading them is noted',
      ),
    ],
  },
  {
    title: 'Money',
    claims: [
      claim(
        'A newer price list lowers no price by more than a half unless a person accepts it.',
        'schema/rules/refresh.ts',
        'tests/published.test.ts',
        'taking a list over › never makes a call cost less than half at any time, of any kind, at any size',
      ),
      claim(
        'A call is held and charged by one and the same price list, whatever is in force when it ends.',
        'functions/proxy/settlement.ts',
        'tests/price-refresh.test.ts',
        'a call in flight › is charged by the prices that its hold was made by, those of %s',
      ),
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
        'functions/egress/names.ts',
        'tests/egress.test.ts',
        'which addresses of a name are dialled › the checked one, whatever the name resolves to a moment later',
      ),
      claim(
        'Redirects are not followed.',
        'functions/egress/direct.ts',
        'tests/egress.test.ts',
        'hands a redirect back and does not follow it',
      ),
      claim(
        'A certificate for another name is refused.',
        'functions/egress/agent.ts',
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
    title: 'Webhooks',
    claims: [
      claim(
        'An event is written in the transaction of what it tells: nothing that was rolled back is told.',
        'db/outbox.ts',
        'tests/webhooks.test.ts',
        'an event › of a change that was rolled back is delivered to nobody',
      ),
      claim(
        'Any number of processes deliver, and none sends what another one is sending.',
        'db/deliveries.ts',
        'tests/webhooks.test.ts',
        'two processes share what is due, and none sends what another is sending',
      ),
      claim(
        'A slow endpoint holds up no other.',
        'functions/jobs/deliver.ts',
        'tests/webhooks.test.ts',
        'an endpoint › that is slow holds up no other, and gets only four at a time',
      ),
      claim(
        'Every delivery is signed, and independent verifiers refuse one that was tampered with.',
        'schema/signature.ts',
        'tests/signature.test.ts',
        'signatures of ours › are refused by all after any tampering',
      ),
      claim(
        'During a rotation’s grace both secrets sign, and after it only the new one.',
        'db/webhooks.ts',
        'tests/webhooks.test.ts',
        'a rotation › has both secrets sign until its grace is over',
      ),
      claim(
        'An endpoint whose name resolves to a private address gets nothing.',
        'functions/jobs/deliver.ts',
        'tests/webhooks.test.ts',
        'where deliveries go › is judged by the address that a name resolves to, too',
      ),
    ],
  },
  {
    title: 'Leaving',
    claims: [
      claim(
        'A day after its deletion was asked for, no row of an org is left in any table, nor any trace in a file that was compacted.',
        'db/deletion.ts',
        'tests/deletion.test.ts',
        'after its grace an org › has no row in any table, and no trace in any file once that is compacted',
      ),
      claim(
        'A backup from before does not bring a deleted org back: it is erased again before anything is served.',
        'functions/jobs/erase.ts',
        'tests/deletion.test.ts',
        'a backup from before › is erased again before anything is served, by the ledger beside the database',
      ),
      claim(
        'With shares of org keys beside the database, sealed secrets of a deleted org open in no backup.',
        'db/shares.ts',
        'tests/deletion.test.ts',
        'a backup from before › holds sealed secrets that open no more, once the share of their key is destroyed',
      ),
      claim(
        'Records are deleted once they are older than the org keeps them, and the audit trail still verifies.',
        'db/retention.ts',
        'tests/retention.test.ts',
        'pruning › takes old audit entries once a day, and the trail still verifies',
      ),
      claim(
        'An export is complete and holds no secret: no token, no key, no hash of one.',
        'db/export.ts',
        'tests/export.test.ts',
        'an archive › over HTTP is the same, and has bodies only where they are asked for',
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
        'encodings › a body of %d MiB is refused in the dialect, its length told or not',
      ),
      claim(
        'Compressed bodies are limited by what they decode to.',
        'functions/proxy/body.ts',
        'tests/hostile.test.ts',
        'encodings › bombs are refused by what they decode to',
      ),
      claim(
        'A limit lets exactly as many calls through, however many come at once over many processes.',
        'db/limits.ts',
        'tests/limits.test.ts',
        'a thousand calls at once on %d processes › against a limit of a hundred requests per %s: exactly a hundred are served',
      ),
      claim(
        'A process that is killed leaves no concurrent call counted for longer than its lease.',
        'db/limits.ts',
        'tests/limits.test.ts',
        'a process that is killed › frees its concurrent calls when their leases have run out',
      ),
      claim(
        'An address that keeps sending bad tokens is told to wait; good ones from it are served.',
        'functions/proxy/authenticate.ts',
        'tests/limits.test.ts',
        'requests without a valid token › from one address are told to wait, exactly from the limit on; valid ones are served',
      ),
      claim(
        'How often a token or a session asks the admin API is limited exactly, over all processes.',
        'functions/admin.ts',
        'tests/admin-limit.test.ts',
        'in several processes › of many who ask at once exactly as many are answered as may be',
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
        'Web Crypto is touched in one file of the server.',
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

const UNTIL_DELETED = 'until the operator deletes it, or the org is deleted';
const UNTIL_PRUNED =
  'for as long as the org keeps records: at most 30 days on Free, 90 on Pro and 365 on Growth';

/** Everything that is stored, and for how long. */
export const RECORDS: readonly Kept[] = [
  {
    what: 'Orgs and their members',
    detail:
      'The org’s name and plan, and the email address, name and role of each member; who has offered the ownership to whom.',
    until: UNTIL_DELETED,
    tables: ['orgs', 'users', 'members', 'ownership_offers'],
  },
  {
    what: 'Invitations',
    detail: 'The address and role that was offered, and a SHA-256 hash of the link’s secret.',
    until: UNTIL_PRUNED,
    tables: ['invitations'],
  },
  {
    what: 'Signing in',
    detail:
      'A SHA-256 hash of each session’s id and of each link by mail, the address and browser that a session was opened from; how the org signs in at its identity provider, with the client’s secret sealed, and which subject there is which member.',
    until:
      'until the session, the link or the attempt is over, the rest until the operator deletes it',
    tables: ['sessions', 'sign_in_links', 'oidc_settings', 'oidc_attempts', 'identities'],
  },
  {
    what: 'Agents and what governs them',
    detail: 'Names of agents, the versions of their policies, prices of models.',
    until: UNTIL_DELETED,
    tables: ['agents', 'agent_policies', 'policies', 'policy_versions', 'prices'],
  },
  {
    what: 'Tokens',
    detail:
      'A SHA-256 hash, the last four characters, what it may do and under which policies, who made it, and its last use to the hour. The token itself is shown once and not kept.',
    until: 'until the operator deletes it, also when revoked or expired',
    tables: ['tokens', 'platform_tokens'],
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
    until: UNTIL_PRUNED,
    tables: ['runs', 'steps', 'spend', 'call_totals', 'reports'],
  },
  {
    what: 'Spending that nears a ceiling',
    detail: 'Which share of which ceiling is told, and which run reached it when.',
    until: UNTIL_DELETED,
    tables: ['alerts'],
  },
  {
    what: 'Bodies of calls and answers, where a policy asks for it',
    detail:
      'Up to 4 MiB of each body, sealed with AES-256-GCM under a key of the org; no body at all unless a policy says "capture": "sealed".',
    until: UNTIL_PRUNED,
    tables: ['captures'],
  },
  {
    what: 'What is used of limits',
    detail:
      'Counts of requests and tokens per agent, policy and org, of repeated requests by their digest, of requests to the admin API by the id of the token or session, and of requests without a valid token by the address they came from.',
    until: 'until they have left their window',
    tables: ['limit_slots'],
  },
  {
    what: 'Responses that a provider keeps',
    detail:
      'The ids of a response and of its items, and the agent that made it, so that no other can read it through Rungate.',
    until: UNTIL_PRUNED,
    tables: ['responses'],
  },
  {
    what: 'Tool calls that wait for approval',
    detail:
      'The name of the tool, the rule that asks, who decided and why; the arguments and the whole answer that proposed them, sealed with AES-256-GCM under a key of the org. Ids of the calls that a run was given, and SHA-256 digests of those that people approved to run at the provider.',
    until:
      'for as long as the org keeps records; the answer until an hour after it was released or expired',
    tables: ['gates', 'gate_decisions', 'parked', 'parked_parts', 'released_calls'],
  },
  {
    what: 'Events, and what was told to webhooks',
    detail:
      'What happened, by ids, names and amounts; the URL of each endpoint and its secret, sealed beside a SHA-256 hash; and of each attempt to deliver its headers, its time, and the status, headers and first 4 KiB of the answer.',
    until: `${UNTIL_PRUNED}; endpoints until they are deleted`,
    tables: ['events', 'webhooks', 'deliveries', 'delivery_attempts'],
  },
  {
    what: 'Rules of alerts',
    detail:
      'What each watches, its threshold and when it fired; the e-mail address it writes to, or the URL of a chat, sealed with AES-256-GCM under a key of the org.',
    until: UNTIL_DELETED,
    tables: ['alert_rules'],
  },
  {
    what: 'Orgs that were deleted',
    detail:
      'The id of each and when it was, so that a backup does not bring it back; nothing else.',
    until: 'for good',
    tables: ['deleted_orgs'],
  },
  {
    what: 'Scheduled jobs',
    detail: 'Which job ran last and what it counted, for the deployment as a whole.',
    until: 'until its next run',
    tables: ['job_leases'],
  },
  {
    what: 'Published prices, where the operator names a source of them',
    detail:
      'The price list as it was fetched, when and from where; which of its prices were not taken over.',
    until: 'until 30 days after a newer list has replaced it',
    tables: ['catalogues', 'price_sources'],
  },
  {
    what: 'Audit trail',
    detail:
      'Who changed or tried to change what, when and from which address, without secrets, as a chain of hashes; checkpoints of it, and the key that signs them, sealed.',
    until: UNTIL_PRUNED,
    tables: ['audit_entries', 'audit_history', 'audit_checkpoints', 'signing_keys'],
  },
];
