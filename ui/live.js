// One stream of server-sent events per tab, closed while nobody looks.

const FIRST_DELAY = 500;
const LONGEST_DELAY = 20_000;
// The server ends a stream by `bye` long before; without it the connection is dead and nobody told us.
const SILENCE = 150_000;

/** Whether what is on the screen is true now: `connecting`, `live`, `reconnecting`, `stale`, `hidden` or `refused`. */
const connection = {
  state: "connecting",
  since: 0,
  reason: "",
  listeners: new Set(),
  set(state) {
    if (state === this.state) return;
    if (this.state === "live") this.since = Date.now();
    this.state = state;
    for (const listener of this.listeners) listener();
  },
};

class Live {
  /** `events`: handlers by event name; `refetch` is called when what was missed must be read anew. */
  constructor(url, events, refetch) {
    this.url = url;
    this.events = events;
    this.refetch = refetch;
    this.source = null;
    this.failures = 0;
    this.retryTimer = 0;
    this.silenceTimer = 0;
    this.missed = false;
    this.onVisibility = () => (document.hidden ? this.hide() : this.show());
    document.addEventListener("visibilitychange", this.onVisibility);
    addEventListener("pagehide", this.onPageHide = () => this.disconnect());
    addEventListener("pageshow", this.onPageShow = (event) => event.persisted && this.show());
    if (document.hidden) this.hide();
    else this.connect();
  }

  close() {
    document.removeEventListener("visibilitychange", this.onVisibility);
    removeEventListener("pagehide", this.onPageHide);
    removeEventListener("pageshow", this.onPageShow);
    this.disconnect();
  }

  move(url) {
    this.url = url;
    if (document.hidden) return;
    this.disconnect();
    this.connect();
  }

  hide() {
    this.disconnect();
    this.missed = true;
    connection.set("hidden");
  }

  show() {
    if (this.source) return;
    this.failures = 0;
    this.connect();
  }

  disconnect() {
    clearTimeout(this.retryTimer);
    clearTimeout(this.silenceTimer);
    this.source?.close();
    this.source = null;
  }

  connect() {
    const opened = Date.now();
    const source = new EventSource(this.url);
    this.source = source;
    source.onopen = () => {
      connection.set("live");
      this.heard();
      if (this.missed) this.refetch();
      this.missed = false;
    };
    source.onerror = () => this.source === source && this.lost();
    source.addEventListener("bye", () => {
      this.disconnect();
      // A server that says goodbye as soon as it is asked is asked less often.
      if (Date.now() - opened > 1000) this.connect();
      else this.later();
    });
    source.addEventListener("resync", () => {
      this.heard();
      this.refetch();
    });
    for (const [event, handle] of Object.entries(this.events)) {
      source.addEventListener(event, (message) => {
        this.heard();
        handle(JSON.parse(message.data));
      });
    }
  }

  heard() {
    this.failures = 0;
    clearTimeout(this.silenceTimer);
    this.silenceTimer = setTimeout(() => this.lost(), SILENCE);
  }

  lost() {
    this.disconnect();
    this.missed = true;
    this.later();
    this.explain();
  }

  /** Wait longer each time, and never all tabs at the same moment. */
  later() {
    this.failures += 1;
    connection.set(this.failures > 3 ? "stale" : "reconnecting");
    const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** (this.failures - 1)) * (0.5 + Math.random() / 2);
    this.retryTimer = setTimeout(() => document.hidden || this.connect(), delay);
  }

  /** An EventSource does not tell a closed door from a broken line, so ask. */
  async explain() {
    const asked = new AbortController();
    connection.reason = "";
    try {
      await request(this.url, { signal: asked.signal });
      asked.abort();
    } catch (error) {
      if (error.status) connection.reason = error.message;
      if (error.status === 401 || error.status === 403) {
        this.disconnect();
        connection.set("refused");
      }
    }
  }
}
