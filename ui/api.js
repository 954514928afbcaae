// The server's JSON. Addresses are relative to <base>, so that the page works wherever it is mounted.

class ApiError extends Error {
  constructor(message, status, id) {
    super(message);
    this.status = status;
    this.id = id;
  }
}

const session = { user: "", actions: new Set(), prompts: false, csrf: "", version: "" };

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0, "");
  }
  clock.learn(response.headers.get("Date"));
  if (response.ok) return response;
  let body = null;
  try {
    body = await response.json();
  } catch {
    // A proxy's error is no JSON.
  }
  throw new ApiError(String(body?.error ?? `The server answered ${response.status}.`), response.status, String(body?.id ?? ""));
}

const getJson = async (path, params, signal) => (await request(address(path, params), { signal })).json();

function address(path, params) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params ?? {})) {
    if (value !== null && value !== undefined && value !== "") query.set(key, value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

// Not randomUUID, which plain http does not have.
const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const runPath = (id, rest = "") => `api/runs/${encodeURIComponent(id)}${rest}`;

const api = {
  async session() {
    const found = await getJson("api/session");
    Object.assign(session, { ...found, actions: new Set(found.actions) });
  },
  runs: (params, signal) => getJson("api/runs", params, signal),
  run: (id, expand, signal) => getJson(runPath(id), { expand: expand.join(",") }, signal),
  steps: (id, params, signal) => getJson(runPath(id, "/steps"), params, signal),
  step: (id, position, signal) => getJson(runPath(id, `/steps/${position}`), null, signal),
  stream: (id, position, params, signal) => getJson(runPath(id, `/steps/${position}/stream`), params, signal),
  calls: (id, position, params, signal) => getJson(runPath(id, `/steps/${position}/calls`), params, signal),
  prompts: (id, position, params, signal) => getJson(runPath(id, `/steps/${position}/prompts`), params, signal),
  models: (id, signal) => getJson(runPath(id, "/models"), null, signal),
  resultPath: (id, position) => runPath(id, `/steps/${position}/result`),
  result: async (id, position) => (await request(api.resultPath(id, position))).text(),
  async act(id, verb, body) {
    const response = await request(runPath(id, `/${verb}`), {
      method: "POST",
      // The key makes a click that is sent twice one re-run, and one addition to a budget.
      headers: { "Content-Type": "application/json", "X-Baton-CSRF": session.csrf, "Idempotency-Key": randomKey() },
      body: JSON.stringify(body),
    });
    return response.json();
  },
};
