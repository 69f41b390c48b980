/** A browser for tests: it keeps cookies, follows redirects, and says where its forms come from. */

/** How a request is sent; `fetch` itself, or an application in this process. */
export type Send = (request: Request) => Response | Promise<Response>;

const MAX_REDIRECTS = 10;

/** A browser with a cookie jar of its own for each host. */
export class Browser {
  readonly #send: Send;
  /** By host, then by name. */
  readonly #jars = new Map<string, Map<string, string>>();

  constructor(send: Send = (request) => fetch(request)) {
    this.#send = send;
  }

  /** The cookies of a host, by name. */
  cookies(host: string): Map<string, string> {
    const jar = this.#jars.get(host) ?? new Map<string, string>();
    this.#jars.set(host, jar);
    return jar;
  }

  /** Sends one request and answers with whatever comes, redirects too. */
  async ask(url: string, init: RequestInit = {}): Promise<Response> {
    const { host } = new URL(url);
    const jar = this.cookies(host);
    const headers = new Headers(init.headers);
    if (jar.size > 0) {
      headers.set('cookie', [...jar].map(([name, value]) => `${name}=${value}`).join('; '));
    }
    const response = await this.#send(new Request(url, { ...init, headers, redirect: 'manual' }));
    for (const line of response.headers.getSetCookie()) keep(jar, line);
    return response;
  }

  /** Opens a page, and what it redirects to until `isEnd` says that a URL is not to be opened. */
  async open(url: string, isEnd: (url: URL) => boolean = () => false): Promise<Response> {
    return await this.follow(await this.ask(url), url, isEnd);
  }

  /** Sends a form as a page of the same site does, and follows redirects. */
  async submit(url: string, fields: Record<string, string> = {}): Promise<Response> {
    const headers = { origin: new URL(url).origin, 'sec-fetch-site': 'same-origin' };
    const body = new URLSearchParams(fields);
    return await this.follow(await this.ask(url, { method: 'POST', headers, body }), url);
  }

  /** Follows the redirects of a response, with GET. */
  async follow(
    response: Response,
    from: string,
    isEnd: (url: URL) => boolean = () => false,
  ): Promise<Response> {
    let [current, url] = [response, from];
    for (let left = MAX_REDIRECTS; left > 0; left--) {
      const location = current.headers.get('location');
      if (location === null) return current;
      const next = new URL(location, url);
      if (isEnd(next)) return current;
      await current.body?.cancel();
      url = next.href;
      current = await this.ask(url);
    }
    throw new Error(`too many redirects from ${from}`);
  }
}

function keep(jar: Map<string, string>, line: string): void {
  const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? [];
  if (/max-age=0\b/i.test(line) || value === '') jar.delete(name);
  else jar.set(name, value);
}
