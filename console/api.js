// Speaks to the admin API, with the operator's token where one is wanted.

const KEPT = "nimgate-admin-token";
const PATIENCE = 10_000;

/** The gateway can not be reached, or is not well. */
export class Away extends Error {}
/** The token is missing or wrong. */
export class Unauthorized extends Error {}

export const token = {
  get: () => sessionStorage.getItem(KEPT),
  set: (text) => sessionStorage.setItem(KEPT, text),
  forget: () => sessionStorage.removeItem(KEPT),
};

/** Asks; answers JSON. `path` is relative to the listener's root. */
export async function ask(path, { method = "GET", also = [] } = {}) {
  const headers = token.get() ? { authorization: `Bearer ${token.get()}` } : {};
  let response, page;
  try {
    response = await fetch(path, {
      method, headers, cache: "no-store", credentials: "omit", redirect: "error",
      signal: AbortSignal.timeout(PATIENCE),
    });
    page = await response.json().catch(() => ({}));
  } catch {
    throw new Away("The gateway does not answer");
  }
  if (response.ok || also.includes(response.status)) return page;
  if (response.status === 401) throw new Unauthorized(page.error ?? "the admin token is missing or wrong");
  const why = page.error ?? `status ${response.status}`;
  throw response.status >= 500 ? new Away(`The gateway answers: ${why}`) : new Error(why);
}
