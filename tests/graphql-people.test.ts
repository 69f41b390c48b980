/** People in the admin API: members, the ownership, invitations, sessions and the way of signing in. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test';
import fc from 'fast-check';
import { listAudit } from '../db/audit.ts';
import type { Org } from '../db/org.ts';
import { Mailer } from '../functions/mail.ts';
import type { Services } from '../functions/services.ts';
import { mayDo, ROLES, type Role } from '../schema/roles.ts';
import type { Browser } from './browser.ts';
import {
  enrol,
  HERE,
  makeTown,
  newEmail,
  pageOf,
  query,
  settle,
  signIn,
  type Town,
  visit,
} from './people.ts';

setDefaultTimeout(60_000);

let town: Town;
beforeAll(async () => {
  town = await makeTown({ RUNGATE_EGRESS_ALLOW: '127.0.0.1/32' });
});
afterAll(() => town.clear());

interface Fault {
  readonly code: string;
  readonly field: string[];
  readonly message: string;
}

/** Runs a mutation; what it answers with, and the codes of its errors with their fields. */
async function mutate<T = Record<string, unknown>>(
  browser: Browser,
  name: string,
  input: object,
  wanted = '',
) {
  const type = `${name[0]!.toUpperCase()}${name.slice(1)}Input!`;
  const text = `mutation M($input: ${type}) { out: ${name}(input: $input) { ${wanted} errors { code field message } } }`;
  const { data, errors = [] } = await query<{ out: (T & { errors: Fault[] }) | null } | null>(
    browser,
    text,
    { input },
  );
  const faults = (data?.out?.errors ?? []).map(({ code, field }) => `${code} ${field.join('.')}`);
  return { out: data?.out, faults, errors: errors.map(({ message }) => message) };
}

const ids = (browser: Browser, email: string) =>
  query<{ members: { nodes: { id: string }[] } }>(
    browser,
    'query Q($search: String) { members(filter: { search: $search }) { nodes { id } } }',
    { search: email },
  ).then(({ data }) => data.members.nodes.map(({ id }) => id));

async function lastActions(org: Org, limit: number): Promise<string[]> {
  const entries = await listAudit(org, { limit });
  return entries.map(({ action, outcome }) => `${action} ${outcome}`);
}

describe('members', () => {
  const MEMBERS = `query Q($first: Int, $after: String, $orderBy: MemberOrder, $filter: MemberFilter) {
    members(first: $first, after: $after, orderBy: $orderBy, filter: $filter) {
      nodes { id role createdAt user { id email name } sessions { id method isCurrent member { id } } }
      pageInfo { hasNextPage endCursor }
    }
  }`;
  interface Listed {
    readonly members: {
      readonly nodes: { id: string; role: string; user: { email: string }; sessions: object[] }[];
      readonly pageInfo: { hasNextPage: boolean; endCursor: string };
    };
  }

  test('are paged in either order, each once, and found by role and by part of an address', async () => {
    const { org, owner } = await settle(town);
    for (let count = 0; count < 7; count++) await enrol(town, org, ROLES[1 + (count % 3)]!);
    const browser = await signIn(town, org, owner);
    const sizes = fc.integer({ min: 1, max: 9 });
    const order = fc.record({
      field: fc.constantFrom('CREATED_AT', 'EMAIL'),
      direction: fc.constantFrom('ASC', 'DESC'),
    });
    const property = fc.asyncProperty(sizes, order, async (first, orderBy) => {
      const emails: string[] = [];
      for (let after: string | undefined; ; ) {
        const { data } = await query<Listed>(browser, MEMBERS, { first, after, orderBy });
        emails.push(...data.members.nodes.map(({ user }) => user.email));
        if (!data.members.pageInfo.hasNextPage) break;
        after = data.members.pageInfo.endCursor;
      }
      expect(new Set(emails).size).toBe(8);
      if (orderBy.field !== 'EMAIL') return;
      const sorted = [...emails].sort();
      expect(emails).toEqual(orderBy.direction === 'DESC' ? sorted.reverse() : sorted);
    });
    await fc.assert(property, { numRuns: 12 });
    const { data } = await query<Listed>(browser, MEMBERS, { filter: { role: 'OWNER' } });
    expect(data.members.nodes.map(({ user }) => user.email)).toEqual([owner]);
    expect(data.members.nodes[0]!.sessions).toMatchObject([{ method: 'LINK', isCurrent: true }]);
  });

  test('a page of them costs the same number of reads however many they are', async () => {
    const { org, owner } = await settle(town);
    const reads = async () => {
      const browser = await signIn(town, org, owner);
      let count = 0;
      const counting: Services = {
        ...town.services,
        db: new Proxy(town.services.db, {
          get(target, name) {
            if (name === 'read' || name === 'first') count++;
            const value = Reflect.get(target, name) as unknown;
            return typeof value === 'function' ? value.bind(target) : value;
          },
        }),
      };
      const other = visit(counting);
      const host = new URL(HERE).host;
      other.cookies(host).set('rungate', browser.cookies(host).get('rungate')!);
      const { errors } = await query(other, MEMBERS, { first: 50 });
      expect(errors).toBeUndefined();
      return count;
    };
    const few = await reads();
    for (let count = 0; count < 20; count++) await enrol(town, org, 'viewer');
    expect(await reads()).toBe(few);
  });

  test('get another role and are removed, which ends their sessions; the trail has before and after', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const { email, memberId } = await enrol(town, org, 'viewer');
    const theirs = await signIn(town, org, email);
    const { out } = await mutate(
      browser,
      'memberUpdateRole',
      { memberId, role: 'ADMIN' },
      'member { role }',
    );
    expect(out).toEqual({ member: { role: 'ADMIN' }, errors: [] });
    expect((await query(theirs, '{ me { role } }')).status).toBe(401);
    const [entry] = await listAudit(org, { limit: 1 });
    expect(JSON.parse(entry!.payload!.text)).toMatchObject({
      before: { role: 'viewer' },
      after: { role: 'admin' },
    });
    const again = await signIn(town, org, email);
    expect((await mutate(browser, 'memberRemove', { memberId }, 'memberId')).out).toEqual({
      memberId,
      errors: [],
    });
    expect((await query(again, '{ me { role } }')).status).toBe(401);
    expect(await ids(browser, email)).toEqual([]);
  });

  test('become owners neither by a change of their roles nor by invitation', async () => {
    const { org, owner, adminToken } = await settle(town);
    const { memberId } = await enrol(town, org, 'admin');
    const browser = await signIn(town, org, owner);
    const byToken = { authorization: `Bearer ${adminToken}` };
    const change =
      'mutation M($id: MemberID!) { memberUpdateRole(input: { memberId: $id, role: OWNER }) { errors { code field message } } }';
    const fault = {
      ...{ code: 'FORBIDDEN', field: ['role'] },
      message: 'Nobody is made an owner: offer him the ownership, which he accepts himself.',
    };
    for (const [asker, headers] of [
      [browser, {}],
      [visit(town.services), byToken],
    ] as const) {
      const { data } = await query(asker, change, { id: memberId }, headers);
      expect(data).toEqual({ memberUpdateRole: { errors: [fault] } } as never);
    }
    const invited = { email: 'new@owners.example', role: 'OWNER' };
    expect((await mutate(browser, 'invitationCreate', invited)).faults).toEqual(['FORBIDDEN role']);
  });

  test('the last owner can neither go nor step down', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const [memberId] = await ids(browser, owner);
    for (const [name, input] of [
      ['memberUpdateRole', { memberId, role: 'VIEWER' }],
      ['memberRemove', { memberId }],
    ] as const) {
      expect((await mutate(browser, name, input)).faults).toHaveLength(1);
    }
    expect(await pageOf(browser)).toContain('owner');
  });

  test('leave by themselves, and are called what they like, when they are signed in', async () => {
    const { org, slug, owner, adminToken } = await settle(town);
    const { email } = await enrol(town, org, 'viewer');
    const browser = await signIn(town, org, email);
    const named = await mutate(browser, 'userRename', { name: ' Ada ' }, 'user { name email }');
    expect(named.out).toEqual({ user: { name: 'Ada', email }, errors: [] });
    expect((await mutate(browser, 'userRename', { name: 'a\nb' })).faults).toEqual([
      'INVALID name',
    ]);
    const typo = await mutate(browser, 'memberLeave', { confirmation: 'other' });
    expect(typo.faults).toEqual(['INVALID confirmation']);
    expect((await mutate(browser, 'memberLeave', { confirmation: slug })).faults).toEqual([]);
    expect((await query(browser, '{ me { role } }')).status).toBe(401);
    const last = await mutate(await signIn(town, org, owner), 'memberLeave', {
      confirmation: slug,
    });
    expect(last.faults).toHaveLength(1);
    const { data } = await query<Record<string, { errors: Fault[] }>>(
      visit(town.services),
      `mutation { a: memberLeave(input: { confirmation: "${slug}" }) { errors { code } }
        b: userRename(input: { name: "x" }) { errors { code } } }`,
      {},
      { authorization: `Bearer ${adminToken}` },
    );
    const codes = Object.values(data).map(({ errors }) => errors[0]?.code);
    expect(codes).toEqual(['NOT_FOUND', 'NOT_FOUND']);
  });

  test('of another org answer exactly like missing ones, and stay as they are', async () => {
    const [one, other] = [await settle(town), await settle(town)];
    const browser = await signIn(town, one.org, one.owner);
    const foreign = (await enrol(town, other.org, 'viewer')).memberId as string;
    const missing = foreign.replace(/.{10}$/, 'z'.repeat(10));
    const answers = async (memberId: string) => [
      await query(browser, 'query Q($id: MemberID!) { member(id: $id) { id } }', { id: memberId }),
      await mutate(browser, 'memberUpdateRole', { memberId, role: 'ADMIN' }),
      await mutate(browser, 'memberRemove', { memberId }),
      await mutate(browser, 'ownershipOffer', { memberId }),
      await mutate(browser, 'ownershipWithdraw', { memberId }),
    ];
    const told = await answers(foreign);
    expect(told).toEqual(await answers(missing));
    expect(told.slice(1).map((answer) => 'faults' in answer && answer.faults)).toEqual(
      Array(4).fill(['NOT_FOUND memberId']),
    );
  });
});

describe('the ownership', () => {
  test('goes over when it is accepted by the heir himself, signed in, with the slug typed', async () => {
    const { org, slug, owner } = await settle(town);
    const heir = await enrol(town, org, 'admin');
    const browser = await signIn(town, org, owner);
    const theirs = await signIn(town, org, heir.email);
    const { memberId } = heir;
    const early = await mutate(theirs, 'ownershipAccept', { confirmation: slug });
    expect(early.faults).toHaveLength(1);
    const offered = await mutate(browser, 'ownershipOffer', { memberId }, 'offer { to { id } }');
    expect(offered.out).toEqual({ offer: { to: { id: memberId } }, errors: [] });
    const typo = await mutate(theirs, 'ownershipAccept', { confirmation: `${slug}x` });
    expect(typo.faults).toEqual(['INVALID confirmation']);
    const token = await mutate<{ secret: string }>(
      theirs,
      'tokenCreate',
      { name: 'small', actions: ['org.read'] },
      'secret',
    );
    const asToken = await query<{ out: { errors: Fault[] } }>(
      visit(town.services),
      'mutation M($i: OwnershipAcceptInput!) { out: ownershipAccept(input: $i) { errors { code } } }',
      { i: { confirmation: slug } },
      { authorization: `Bearer ${token.out?.secret}` },
    );
    expect(asToken.data.out.errors.map(({ code }) => code)).toEqual(['NOT_FOUND']);
    const done = await mutate(theirs, 'ownershipAccept', { confirmation: slug }, 'member { role }');
    expect(done.out).toEqual({ member: { role: 'OWNER' }, errors: [] });
    for (const gone of [browser, theirs]) expect(await pageOf(gone)).toContain('Send me a link');
    expect(await pageOf(await signIn(town, org, owner))).toContain('admin');
  });

  test('is taken back as long as it is not accepted', async () => {
    const { org, slug, owner } = await settle(town);
    const { memberId, email } = await enrol(town, org, 'member');
    const browser = await signIn(town, org, owner);
    await mutate(browser, 'ownershipOffer', { memberId });
    expect((await mutate(browser, 'ownershipWithdraw', { memberId })).faults).toEqual([]);
    expect((await mutate(browser, 'ownershipWithdraw', { memberId })).faults).toHaveLength(1);
    const theirs = await signIn(town, org, email);
    const late = await mutate(theirs, 'ownershipAccept', { confirmation: slug });
    expect(late.faults).toHaveLength(1);
  });
});

describe('invitations', () => {
  async function linkTo(email: string, after: number): Promise<string> {
    const letter = await town.mailbox.next(email, after);
    return HERE + /\/invitations\/[\w-]{43}\b/.exec(letter.text)![0];
  }

  test('are mailed, shown, accepted once, and make a member of that role who is signed in', async () => {
    const { org, owner, name } = await settle(town);
    const browser = await signIn(town, org, owner);
    const email = newEmail();
    const before = town.mailbox.received.length;
    const made = await mutate<{ link: string | null }>(
      browser,
      'invitationCreate',
      { email: ` ${email.toUpperCase()}`, role: 'MEMBER' },
      'link invitation { id email role inviter { user { email } } }',
    );
    expect(made.out).toMatchObject({
      link: null,
      invitation: { email, role: 'MEMBER', inviter: { user: { email: owner } } },
      errors: [],
    });
    const link = await linkTo(email, before);
    const invited = visit(town.services);
    const page = await (await invited.open(link)).text();
    for (const text of [email, Bun.escapeHTML(name), 'member']) expect(page).toContain(text);
    const answers = await Promise.all(
      Array.from({ length: 6 }, async () => (await invited.submit(link)).status),
    );
    expect(answers.sort()).toEqual([200, ...Array<number>(5).fill(404)]);
    expect(await pageOf(invited)).toContain(email);
    expect((await visit(town.services).open(link)).status).toBe(404);
    expect(await lastActions(org, 3)).toEqual([
      'session.create allowed',
      'invitation.accept allowed',
      'invitation.create allowed',
    ]);
  });

  test('sent again have a new link and no old one; those taken back have none', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const email = newEmail();
    const before = town.mailbox.received.length;
    await mutate(browser, 'invitationCreate', { email, role: 'VIEWER' });
    const { data } = await query<{ invitations: { nodes: { id: string }[] } }>(
      browser,
      '{ invitations { nodes { id } } }',
    );
    const invitationId = data.invitations.nodes[0]!.id;
    const first = await linkTo(email, before);
    await mutate(browser, 'invitationResend', { invitationId });
    const second = await linkTo(email, before + 1);
    expect((await visit(town.services).submit(first)).status).toBe(404);
    expect((await visit(town.services).open(second)).status).toBe(200);
    expect((await mutate(browser, 'invitationRevoke', { invitationId })).faults).toEqual([]);
    expect((await visit(town.services).submit(second)).status).toBe(404);
    for (const name of ['invitationResend', 'invitationRevoke']) {
      const { faults } = await mutate(browser, name, { invitationId });
      expect(faults).toEqual(['NOT_FOUND invitationId']);
    }
  });

  test('go to no owner, no one above who invites, no member, and no address that is none', async () => {
    const { org, owner } = await settle(town);
    const { email } = await enrol(town, org, 'admin');
    const browser = await signIn(town, org, email);
    for (const [input, fault] of [
      [{ email: newEmail(), role: 'OWNER' }, 'role'],
      [{ email: owner, role: 'VIEWER' }, 'email'],
      [{ email: 'nobody', role: 'VIEWER' }, 'email'],
      [{ email: `a@${'b'.repeat(300)}.example`, role: 'VIEWER' }, 'email'],
    ] as const) {
      const { faults } = await mutate(browser, 'invitationCreate', input);
      expect(faults.map((text) => text.split(' ')[1])).toEqual([fault]);
    }
    expect((await query(browser, '{ invitations { nodes { id } } }')).data).toEqual({
      invitations: { nodes: [] },
    } as never);
  });

  test('without a mail server show their link in development, and are not made in production', async () => {
    const { org, owner } = await settle(town);
    const host = new URL(HERE).host;
    const session = (await signIn(town, org, owner)).cookies(host).get('rungate')!;
    for (const isProduction of [false, true]) {
      const config = { ...town.services.config, mail: undefined, isProduction };
      const mailer = new Mailer(config, town.services.log);
      const browser = visit({ ...town.services, config, mailer });
      browser.cookies(host).set(isProduction ? '__Host-rungate' : 'rungate', session);
      const input = { email: newEmail(), role: 'VIEWER' };
      const { out, faults } = await mutate<{ link: string }>(
        browser,
        'invitationCreate',
        input,
        'link',
      );
      expect(faults).toHaveLength(isProduction ? 1 : 0);
      if (!isProduction) expect(out?.link).toMatch(/\/invitations\/[\w-]{43}$/);
    }
  });
});

describe('sessions', () => {
  test.each(ROLES.flatMap((by) => ROLES.map((of) => [by, of] as const)))(
    'of another are ended by a %s, if he is a %s, as the table of roles says; one’s own always',
    async (by: Role, of: Role) => {
      const { org } = await settle(town);
      const [actor, target] = [await enrol(town, org, by), await enrol(town, org, of)];
      const browser = await signIn(town, org, actor.email);
      const theirs = await signIn(town, org, target.email);
      const { data } = await query<{ me: { sessions: { id: string }[] } }>(
        theirs,
        '{ me { sessions { id } } }',
      );
      const [sessionId] = data.me.sessions.map(({ id }) => id);
      const may = mayDo(by, 'session.revoke') && (of !== 'owner' || by === 'owner');
      const { faults } = await mutate(browser, 'sessionRevoke', { sessionId });
      expect(faults).toEqual(may ? [] : ['NOT_FOUND sessionId']);
      expect((await query(theirs, '{ me { role } }')).status).toBe(may ? 401 : 200);
      const own = await query<{ me: { sessions: { id: string; isCurrent: boolean }[] } }>(
        browser,
        '{ me { sessions { id isCurrent } } }',
      );
      expect(own.data.me.sessions).toMatchObject([{ isCurrent: true }]);
      const mine = { sessionId: own.data.me.sessions[0]!.id };
      expect((await mutate(browser, 'sessionRevoke', mine)).faults).toEqual([]);
      expect((await query(browser, '{ me { role } }')).status).toBe(401);
    },
  );

  test('of all are listed for whom the table of roles lets, and of one for him alone', async () => {
    const { org, owner } = await settle(town);
    await signIn(town, org, owner);
    for (const role of ROLES) {
      const { email, memberId } = await enrol(town, org, role);
      const browser = await signIn(town, org, email);
      const { data, errors } = await query<{ sessions: { nodes: { id: string }[] } | null }>(
        browser,
        'query Q($memberId: MemberID) { sessions(memberId: $memberId) { nodes { id } } }',
        { memberId },
      );
      expect([data.sessions?.nodes.length, errors?.length]).toEqual(
        mayDo(role, 'session.read') ? [1, undefined] : [undefined, 1],
      );
    }
  });
});

describe('the identity provider', () => {
  const settings = {
    issuer: 'https://id.example.com/tenant',
    clientId: 'rungate',
    clientSecret: 'canary-of-the-client',
    domains: ['Example.com ', 'example.com', 'example.org'],
  };
  const CONFIG = '{ signInConfig { issuer clientId domains redirectUri } }';

  test('is set, shown without its secret, kept or changed with it, and taken away', async () => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    expect((await mutate(browser, 'signInConfigSet', settings)).faults).toEqual([]);
    const shown = {
      ...{ issuer: settings.issuer, clientId: 'rungate', domains: ['example.com', 'example.org'] },
      redirectUri: `${HERE}/sign-in/oidc/callback`,
    };
    expect((await query(browser, CONFIG)).data).toEqual({ signInConfig: shown } as never);
    const { clientSecret: _, ...rest } = settings;
    const renamed = { ...rest, clientId: 'other' };
    expect((await mutate(browser, 'signInConfigSet', renamed)).faults).toEqual([]);
    const moved = { ...rest, issuer: 'https://evil.example/' };
    expect((await mutate(browser, 'signInConfigSet', moved)).faults).toEqual([
      'INVALID clientSecret',
    ]);
    const wrong = await mutate(browser, 'signInConfigDelete', { issuer: moved.issuer });
    expect(wrong.faults).toEqual(['NOT_FOUND issuer']);
    const gone = await mutate(browser, 'signInConfigDelete', { issuer: settings.issuer });
    expect(gone.faults).toEqual([]);
    expect((await query(browser, CONFIG)).data).toEqual({ signInConfig: null } as never);
    const trail = JSON.stringify(await listAudit(org, { limit: 50 }));
    expect(trail).not.toContain(settings.clientSecret);
  });

  test.each([
    ['issuer', 'http://id.example.com'],
    ['issuer', 'https://10.0.0.1'],
    ['issuer', 'https://user:pass@id.example.com'],
    ['issuer', 'https://id.example.com/?a=b'],
    ['issuer', `https://id.example.com/${'x'.repeat(500)}`],
    ['clientId', ''],
    ['clientId', 'a b'],
    ['clientSecret', 'x'.repeat(1_001)],
    ['domains', []],
    ['domains', ['*']],
    ['domains', ['example.com', 'user@example.com']],
    ['domains', Array.from({ length: 51 }, (_, at) => `d${at}.example`)],
  ])('with a bad %s is refused by its name', async (field, value) => {
    const { org, owner } = await settle(town);
    const browser = await signIn(town, org, owner);
    const { faults } = await mutate(browser, 'signInConfigSet', { ...settings, [field]: value });
    expect(faults.map((text) => text.split(/[ .]/)[1])).toEqual([field]);
  });

  test('is seen by admins and changed by owners', async () => {
    const { org } = await settle(town);
    for (const role of ROLES) {
      const { email } = await enrol(town, org, role);
      const browser = await signIn(town, org, email);
      const set = await mutate(browser, 'signInConfigSet', settings);
      expect(set.errors.length === 0).toBe(mayDo(role, 'sign_in.update'));
      const { errors } = await query(browser, CONFIG);
      expect(errors === undefined).toBe(mayDo(role, 'sign_in.read'));
    }
  });
});
